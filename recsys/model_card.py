"""A version's model card in Markdown: what it is, its data and figures, what it is for, and where its limits are.

After Mitchell et al. 2019, "Model Cards for Model Reporting". It is the version's description in the registry, where
people promote. A paragraph is one line, since some pages break lines where Markdown does not; the first line stands
alone in lists. Texts from the data are escaped.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from recsys.artifact import Card
from recsys.dataset import Build
from recsys.small_cells import FEW, WITHHELD
from recsys.story import ModelRow
from recsys.verdict import Criterion, Verdict
from recsys.wording import (
    bounds,
    count,
    decimal,
    literal_in_registry,
    many,
    milliseconds,
    moment,
    percent,
    plain,
    present,
    size,
    times,
)

FEW_USERS = 1000
"""Test users below which the card warns of wide bounds."""

_SENTENCE, _ROW = 600, 240  # characters
_SLICES, _CRITERIA = 3, 6  # that are told in words
_DAY = 86_400
_WHOLE = 0.999  # share of the catalog

_FOR_USERS = (
    "Ranks items of this catalog for users of this shop by what they did before. Not for: other shops or catalogs; "
    "prices, stock or anything else than past events; items that came after its data (unknown until the next night); "
    "users without history (they get what is popular). Its figures are of past events and no proof of later clicks."
)
_FOR_NIGHTS = (
    "Labels the events from which students of this shop learn. Not for serving: it is larger and slower than a "
    "student, and nothing tests it under load. Its figures are of past events and no proof of later clicks."
)
_BACK_USERS = (
    "`recsys rollback --reason TEXT` makes the champion before the champion again; `recsys promote --version N` takes "
    "another one; `recsys lineage N` names all that a version was made from."
)
_BACK_NIGHTS = "Point the alias `champion` of this model at another version: nights use that one while it is fresh."


@dataclass(frozen=True)
class Judged:
    """A model as it was judged: the verdict, the figures (its own first), and the data, whose `dataset` is a digest."""

    verdict: Verdict
    models: tuple[ModelRow, ...]
    shop: str  # its name; empty where it is not known
    dataset: str
    build: Build


@dataclass(frozen=True)
class StudentFacts:
    """How a student was found."""

    trials: int
    weight: float  # of the soft labels; 0: it learnt from the events alone
    k: int  # soft labels a position

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From trials.json beside a student."""
        trials = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
        best = next(trial for trial in trials if trial["best"])
        return cls(len(trials), best["weight"], best["k"])


@dataclass(frozen=True)
class TeacherFacts:
    """What a teacher is, and what it knows."""

    architecture: str  # in words, in Markdown
    items: int
    length: int
    as_of: int  # seconds UTC
    neighbours_weight: float

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From teacher.json and about.json beside a teacher."""
        described, about = (json.loads((folder / name).read_text("utf-8")) for name in ("teacher.json", "about.json"))
        if described["kind"] == "ensemble":
            members = [f"{many(len(each['heads']), 'block')}, width {each['width']}" for each in described["shapes"]]
            words = f"the mean of {len(members)} transformer decoders ({'; '.join(members)})"
        elif described["kind"] == "language_model":
            shape = described["shape"]
            backbone = literal_in_registry(plain(Path(shape["backbone"]).name))
            words = f"{many(shape['layers'], 'layer')} of the language model {backbone}, with LoRA of rank"
            words = f"{words} {shape['lora_rank']} and a head of width {shape['head_width']}"
        else:
            shape = described["shape"]
            words = f"a transformer decoder of {many(len(shape['heads']), 'block')}, width {shape['width']}"
        weight = about.get("neighbours_weight", 0.0)
        return cls(words, about["items"], about["length"], about["as_of"], weight)


def student_card(judged: Judged, card: Card, student: StudentFacts, teacher: TeacherFacts) -> str:
    """The card of an artifact: `card` is what it says of itself."""
    row = judged.models[0]
    parts = [
        f"A transformer decoder of {many(card.blocks, 'block')}, width {card.width}, item table of {card.bits} bits, "
        f"in one ONNX graph of {size(row.bytes)}. It reads the newest {card.length} items of a history and ranks "
        f"{count(card.items)} items in {milliseconds(row.p99_ms)} (99 % of requests)."
    ]
    if card.neighbours:
        parts.append(
            f"Neighbours of the newest {card.newest} items, {card.neighbours} kept of each, have a share of "
            f"{percent(card.neighbours_weight, digits=0)} in its scores."
        )
    again = "may be shown again" if card.repeats == "allow" else "are never shown again"
    parts.append(f"Items of a history {again}.")
    learnt = f"soft labels ({student.k} a position, weight {student.weight:g}) of its teacher, {teacher.architecture}"
    learnt = learnt if student.weight else "events alone: without a teacher's labels it did best"
    parts.append(f"Best of {many(student.trials, 'trial')}; learnt from {learnt}.")
    return _written(judged, " ".join(parts), _FOR_USERS, [*_limits(judged), *_first(judged)], _BACK_USERS)


def teacher_card(judged: Judged, teacher: TeacherFacts) -> str:
    """The card of a teacher."""
    words = f"{teacher.architecture[0].upper()}{teacher.architecture[1:]}; {size(judged.models[0].bytes)} of weights."
    blended = f" Neighbours have a share of {percent(teacher.neighbours_weight, digits=0)} in its scores."
    words += blended if teacher.neighbours_weight else ""
    known = f"{count(teacher.items)} items and events before {moment(teacher.as_of)}"
    words += f" It knows {known}, and reads the newest {teacher.length} items of a history."
    return _written(judged, words, _FOR_NIGHTS, list(_limits(judged)), _BACK_NIGHTS)


def _written(judged: Judged, what: str, use: str, limits: list[str], back: str) -> str:
    verdict = judged.verdict
    return "\n".join(
        [
            f"{verdict.decision}: {_shown(verdict.sentence, _SENTENCE)}",
            *(["", f"What to do: {_shown(verdict.advice, _SENTENCE)}"] if verdict.decision != "PROMOTE" else []),
            *("", "### What it is", "", what),
            *("", "### Data", "", _data(judged)),
            *("", "### Figures", "", *_table(judged.models)),
            *_slices(verdict),
            *("", "### Gate", "", *_gate(verdict)),
            *("", "### Intended use", "", use),
            *("", "### Limits", "", *(f"- {limit}" for limit in limits)),
            *("", "### Going back", "", back, ""),
        ]
    )


def _data(judged: Judged) -> str:
    build = judged.build
    shop = f"{_shown(judged.shop)}: " if judged.shop else ""
    split = "tested on the last event of each user"
    if build.test_start is not None:
        days = (build.as_of - build.test_start) / _DAY
        split = f"tested on what came in the last {many(round(days), 'day')}, from {moment(build.test_start)}"
    return (
        f"{shop}{count(build.kept)} events (of {count(build.accepted)} accepted) of {count(build.users)} users and "
        f"{count(build.items)} items, before {moment(build.as_of)}; {split}, by {count(build.test_users)} users, "
        f"ranking the whole catalog. Users are keyed tokens: the model holds no user. Dataset `{judged.dataset[:16]}`."
    )


def _table(models: tuple[ModelRow, ...]) -> Iterator[str]:
    yield "| Model | NDCG@10 | 95 % bounds | HR@10 | 95 % bounds | Catalog | Size |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for row in models:
        cells = [_shown(row.name)]
        for metric in ("ndcg_at_10", "hr_at_10"):
            estimate = row.estimate(metric)
            cells += [decimal(estimate.value), bounds(estimate)]
        yield f"| {' | '.join((*cells, percent(row.coverage, digits=0), size(row.bytes)))} |"


def _slices(verdict: Verdict) -> Iterator[str]:
    """The largest losses first. Nothing where the gate did not come to them."""
    slices = [row for row in verdict.criteria if row.name.startswith("slice_")]
    losses = sorted(
        (row for row in slices if row.value is not None and row.value < 0), key=lambda row: row.value or 0.0
    )
    if slices:
        yield from ("", "### Groups of users", "")
        told = [f"- {_shown(row.sentence, _ROW)}" for row in losses[:_SLICES]]
        hidden = [row.name for row in slices if row.value is None]
        which = "other group" if hidden else "group"
        yield from told or [f"No {which} does worse than with the model it was compared with."]
        if hidden:
            yield from ("", f"{WITHHELD.capitalize()}, or they would tell of {FEW}: {', '.join(hidden)}.")


def _gate(verdict: Verdict) -> Iterator[str]:
    """What failed or is unproven, in words; the groups of users, told above, by name."""
    open_rows = [row for row in verdict.criteria if row.outcome != "pass"]
    told = sorted(open_rows, key=lambda row: row.outcome != "fail")
    for row in told[:_CRITERIA]:
        yield f"- {_shown(row.name)} {_outcome(row)}: {_shown(row.sentence, _ROW)}"
    if len(told) > _CRITERIA:
        yield f"- and {', '.join(f'{_shown(row.name)} ({_outcome(row)})' for row in told[_CRITERIA:])}"
    passed = len(verdict.criteria) - len(told)
    unproven = [_shown(row.name) for row in verdict.criteria if row.outcome == "pass" and not row.proven]
    yield f"- {passed} of {len(verdict.criteria)} criteria pass" + (
        f"; measured but not proven: {', '.join(unproven)}" if unproven else ""
    )


def _limits(judged: Judged) -> Iterator[str]:
    """What the numbers themselves say against the model."""
    row, build = judged.models[0], judged.build
    quality = row.estimate("ndcg_at_10")
    if not present(quality.value):
        yield "It gave something that is no number: it cannot be compared."
    elif present(quality.low) and present(quality.high) and quality.value and build.test_users < FEW_USERS:
        half = percent((quality.high - quality.low) / 2 / quality.value, digits=0)
        yield f"Only {count(build.test_users)} test users: its NDCG@10 is known to ±{half}."
    if present(row.coverage) and row.coverage < _WHOLE:
        yield f"It shows {percent(row.coverage)} of the catalog to the test users (first ten); the rest stays unseen."
    if present(row.popularity):
        leans = "it leans on what is popular" if round(row.popularity, 1) > 1 else "it does not lean on what is popular"
        yield f"What it shows is {times(row.popularity)} as popular as the average item: {leans}."
    if row.membership:
        auc = row.membership.auc
        yield (
            f"An attacker tells events it learnt from with an AUC of {decimal(auc.value, 3)} ({bounds(auc)}; .5 is "
            f"guessing), by {count(row.membership.users)} users: what it learnt can in part be read from its answers."
        )
    if build.test_start is None:
        yield "The split takes each user's last event, whenever it was: training may know later events of others."
    else:
        yield "One test window: a season or campaign outside it was not seen."
    yield "One seed: another one gives other figures, and the bounds are over users alone."
    yield from (f"{_shown(note[0].upper() + note[1:], _ROW)}." for note in build.notes if note)


def _first(judged: Judged) -> Iterator[str]:
    if not any(row.role == "champion" for row in judged.models):
        yield "It was compared with no champion."


def _outcome(row: Criterion) -> str:
    return "failed" if row.outcome == "fail" else "is unproven"


def _shown(text: str, most: int = 80) -> str:
    return literal_in_registry(plain(text, most))
