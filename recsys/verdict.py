"""What the gate says: each criterion with value, threshold and bounds; a decision, a sentence, what to do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self

from recsys.statistics import Interval

Kind = Literal["condition", "proof", "guard"]
Outcome = Literal["pass", "unproven", "fail"]
Decision = Literal["PROMOTE", "HOLD", "REJECT", "NO CHANGE"]


@dataclass(frozen=True)
class Criterion:
    """One row of a verdict. `proven`: the margin is cleared with 95 % confidence, or by a plain fact."""

    name: str
    kind: Kind
    value: float | None  # None where it is withheld: so few users tell about single ones
    threshold: float
    low: float | None  # one-sided 95 % bounds, None where nothing is estimated
    high: float | None
    outcome: Outcome
    proven: bool
    sentence: str

    @classmethod
    def fact(cls, name: str, value: float | None, threshold: float, passed: bool, sentence: str) -> Self:
        """A guard on a number that is measured, not estimated."""
        return cls(name, "guard", value, threshold, None, None, "pass" if passed else "fail", passed, sentence)

    @classmethod
    def condition(cls, name: str, faults: Sequence[str], otherwise: str) -> Self:
        """What must hold before anything is compared: any fault breaks it."""
        sentence = "; ".join(faults) or otherwise
        outcome: Outcome = "fail" if faults else "pass"
        return cls(name, "condition", len(faults), 0, None, None, outcome, not faults, sentence)


@dataclass(frozen=True)
class Margin:
    """Where an estimate must lie: at or above `threshold`, or strictly above it."""

    threshold: float
    strictly: bool = False

    def cleared_by(self, value: float) -> bool:
        """Whether a value is on the right side."""
        return value > self.threshold if self.strictly else value >= self.threshold

    def outcome(self, kind: Kind, estimate: Interval) -> Outcome:
        """A guard needs its value; a proof its bound, and it fails if the other bound is short of it too."""
        if kind == "guard":
            return "pass" if self.cleared_by(estimate.value) else "fail"
        if self.cleared_by(estimate.low):
            return "pass"
        return "unproven" if self.cleared_by(estimate.high) else "fail"


@dataclass(frozen=True)
class Verdict:
    """What was decided, why in one sentence, and what to do."""

    decision: Decision
    sentence: str
    advice: str
    criteria: tuple[Criterion, ...]

    def held_back(self, reason: str) -> "Verdict":
        """The same evidence, but whatever would be promoted by it is held, because of a `reason` that is no criterion."""
        if self.decision != "PROMOTE":
            return self
        return replace(self, decision="HOLD", sentence=f"{reason}. {self.sentence}", advice="Nothing to do.")

    def to_json(self) -> str:
        """Canonical text: the same verdict gives the same bytes."""
        return json.dumps(asdict(self), sort_keys=True, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        value = json.loads(text)
        return cls(**{**value, "criteria": tuple(Criterion(**row) for row in value["criteria"])})


def decide(criteria: Sequence[Criterion], advice: Mapping[str, str]) -> Verdict:
    """REJECT if anything failed, else HOLD if anything is unproven, else PROMOTE; `advice` by criterion."""
    failed = [row for row in criteria if row.outcome == "fail"]
    unproven = [row for row in criteria if row.outcome == "unproven"]
    if failed:
        return Verdict("REJECT", _because("Rejected", failed), _what_to_do(failed, advice), tuple(criteria))
    if unproven:
        todo = "Wait for more days, or widen data.test_days: more test users narrow the bounds."
        return Verdict("HOLD", _because("Not enough evidence", unproven), todo, tuple(criteria))
    measured = [row.name for row in criteria if not row.proven]
    rest = f"; measured but not proven: {', '.join(measured)}" if measured else "; all of them proven"
    leading = next(row for row in criteria if row.kind == "proof").sentence
    sentence = f"Fit for promotion: all {len(criteria)} criteria pass{rest}. It {leading}."
    return Verdict("PROMOTE", sentence, "Nothing to do.", tuple(criteria))


def _because(opening: str, rows: Sequence[Criterion]) -> str:
    return f"{opening}: {'; '.join(f'{row.name}: {row.sentence}' for row in rows)}."


def _what_to_do(rows: Sequence[Criterion], advice: Mapping[str, str]) -> str:
    return " ".join(dict.fromkeys(advice[row.name] for row in rows))
