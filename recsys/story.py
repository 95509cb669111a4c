"""What one night came to, in plain numbers and words: all that a report needs, kept as JSON to be told again.

It knows none of the objects it is told from, so that an old story can be read by a later report.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from recsys.errors import StoreError

SCHEMA = 1

Decision = Literal["PROMOTE", "HOLD", "REJECT", "NO CHANGE"]
Role = Literal["teacher", "student", "artifact", "champion", "baseline"]
Outcome = Literal["pass", "unproven", "fail"]
Unit = Literal["share", "change", "count", "ms", "bytes", "ratio", "number"]
"""share: 0.9 is 90 %; change: -0.02 is -2 %, always signed; ratio: 1.25 times; number: a metric, four decimals."""


@dataclass(frozen=True)
class Estimate:
    """A value and its one-sided 95 % bounds; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class MembershipRow:
    """What an attacker learns from a model about the events it learnt from; recsys/membership.py says how."""

    users: int
    auc: Estimate  # .5: guessing
    advantage: Estimate
    caught: Estimate  # true positive rate at a false positive rate of 1 %
    control: Estimate  # AUC of the same attack on what never learnt from them


@dataclass(frozen=True)
class ModelRow:
    """One model on the test users; the metrics' names are those of recsys/metrics.py, as in "ndcg_at_10"."""

    name: str
    role: Role
    metrics: Mapping[str, Estimate]
    coverage: float | None = None  # share of the catalog that is recommended to somebody, 10 items a user
    popularity: float | None = None  # mean popularity of what is recommended, over the average item's
    bytes: int | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    unseen: Estimate = Estimate(None)  # HR@10 on targets without training events
    unseen_users: int = 0  # who have one; 0 also where they are too few to be told of
    membership: MembershipRow | None = None  # None: not attacked

    def estimate(self, metric: str) -> Estimate:
        """The metric, or an absent one."""
        return self.metrics.get(metric, Estimate(None))


@dataclass(frozen=True)
class CurvePoint:
    """One epoch; its number counts from 1."""

    epoch: int
    loss: float | None
    validation_ndcg: float | None


@dataclass(frozen=True)
class TrialRow:
    """One student that was tried. Weight 0 is the one without distillation."""

    number: int
    width: int
    weight: float
    k: int
    state: str
    validation_ndcg: float | None
    seconds: float | None
    best: bool
    curve: tuple[CurvePoint, ...] = ()
    temperature: float = 1.0
    dropout: float | None = None  # told since it is tried

    @property
    def undistilled(self) -> bool:
        """Whether it learnt from hard labels alone."""
        return self.weight == 0


@dataclass(frozen=True)
class KnobRow:
    """How much one knob of the search mattered: shares sum to 1."""

    name: str
    share: float


@dataclass(frozen=True)
class GridPoint:
    """One way to make the student smaller, measured on the validation users against the float student."""

    keep_ffn: float
    table_bits: int
    bytes: int
    change: Estimate  # of NDCG@10, relative to the float student
    outcome: Literal["chosen", "larger", "refused"]  # larger: within the loss, but a smaller point is as well
    control: bool  # unpruned, with the same epochs of recovery
    reason: str
    keep_neighbours: float = 1.0
    keep_heads: float = 1.0
    recovery: Literal["", "soft", "hard", "rounded"] = (
        ""  # trained a little more: by which labels, or with rounded weights
    )
    keep_blocks: float = 1.0


@dataclass(frozen=True)
class CriterionRow:
    """One row of the gate."""

    name: str
    kind: Literal["condition", "proof", "guard"]
    value: float | None
    threshold: float | None
    low: float | None
    high: float | None
    outcome: Outcome
    proven: bool
    sentence: str
    unit: Unit = "number"
    better: Literal["higher", "lower"] = "higher"


@dataclass(frozen=True)
class SliceRow:
    """One kind of user or item: the artifact's NDCG@10 against another model's."""

    name: str
    users: int | None  # None where its figures are withheld
    against: str
    change: Estimate
    outcome: Outcome


@dataclass(frozen=True)
class StepRow:
    """One step of the night; `reused` when its result was found in the store. Its cost is in `Story.currency`."""

    name: str
    seconds: float | None  # of the clock
    reused: bool
    cpu_seconds: float | None = None
    gpu_seconds: float | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Pick:
    """One recommended item; `taken` when many of the users really took it in the test window."""

    title: str
    taken: bool
    because: str = ""  # title of the event that carried it most; empty where there is none or it was not asked


@dataclass(frozen=True)
class Example:
    """Test users who share a history, by titles alone: what they have all done, what many took then, what is shown for it."""

    history: tuple[str, ...]
    taken: tuple[str, ...]
    artifact: tuple[Pick, ...]
    teacher: tuple[Pick, ...] = ()  # in stories of before, which were of single users


@dataclass(frozen=True)
class ShiftRow:
    """An item that artifact and teacher show to different numbers of test users, among ten."""

    title: str
    artifact: int  # users
    teacher: int


@dataclass(frozen=True)
class DisagreementRow:
    """How far the artifact parts from its teacher over all test users, and where most."""

    first: float  # share of users who get the same item first
    shared: float  # of ten items, mean over users
    more: tuple[ShiftRow, ...]  # that the artifact shows to more users
    less: tuple[ShiftRow, ...]


@dataclass(frozen=True)
class FileRow:
    """One file of events: rows == accepted + quarantined."""

    name: str
    rows: int
    accepted: int
    quarantined: int
    by_rule: Mapping[str, int]


@dataclass(frozen=True)
class DataFlow:
    """Where every row of the input went. Accepted rows of all files == kept + those left aside, by reason."""

    files: tuple[FileRow, ...]
    kept: int
    duplicates: int
    left_out: int  # below the smallest rating, or of a kind with weight 0
    repeats: int
    after_as_of: int
    capped: int
    users: int
    items: int
    validation_users: int
    test_users: int
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows in, over all files."""
        return sum(file.rows for file in self.files)

    @property
    def accepted(self) -> int:
        """Rows accepted, over all files."""
        return sum(file.accepted for file in self.files)

    @property
    def quarantined(self) -> int:
        """Rows quarantined, over all files."""
        return sum(file.quarantined for file in self.files)

    def by_rule(self) -> dict[str, int]:
        """Rows quarantined by each rule, over all files, most first."""
        rules: dict[str, int] = {}
        for file in self.files:
            for rule, rows in file.by_rule.items():
                rules[rule] = rules.get(rule, 0) + rows
        return dict(sorted(rules.items(), key=lambda pair: (-pair[1], pair[0])))


@dataclass(frozen=True)
class LineageNode:
    """One object of the store, or an input file, and the digests of what it was made from."""

    step: str
    digest: str
    parents: tuple[str, ...]
    name: str = ""  # of an input file
    count: int | None = None
    of: str = ""  # what is counted: rows, users, positions
    bytes: int | None = None
    made: int | None = None  # seconds UTC
    earlier: bool = False  # handed over by an earlier night


@dataclass(frozen=True)
class Story:
    """One night. Parts that the night did not come to are empty."""

    shop: str  # the name of the data, as the user gave it
    as_of: int  # seconds UTC, exclusive
    decision: Decision
    sentence: str
    advice: str
    registry: str = ""  # what the registry holds now, in one sentence
    scores: str = ""  # the newest batch scores and how many lists they changed, in one sentence
    cut_short: str = ""  # what the time budget ended before it was done, in one sentence
    models: tuple[ModelRow, ...] = ()
    teacher_curve: tuple[CurvePoint, ...] = ()
    trials: tuple[TrialRow, ...] = ()
    knobs: tuple[KnobRow, ...] = ()  # of the search, the one that mattered most first; none from few trials
    grid: tuple[GridPoint, ...] = ()
    grid_max_loss: float = 0.0  # the largest loss that the grid was judged by: 0.02 is 2 %
    criteria: tuple[CriterionRow, ...] = ()
    slices: tuple[SliceRow, ...] = ()
    slice_max_loss: float = 0.0
    steps: tuple[StepRow, ...] = ()
    currency: str = ""  # of all costs
    cost_since_promotion: float | None = None  # of the nights after the one that made the last champion, with this one
    examples: tuple[Example, ...] = ()
    disagreement: DisagreementRow | None = None
    data: DataFlow | None = None
    lineage: tuple[LineageNode, ...] = ()
    schema: int = field(default=SCHEMA)

    def model(self, role: Role) -> ModelRow | None:
        """The first model in a role; None when the night has none, as on a first night without a champion."""
        return next((model for model in self.models if model.role == role), None)

    @property
    def undistilled(self) -> TrialRow | None:
        """The best student without distillation: what distilling is held against."""
        alone = [trial for trial in self.trials if trial.undistilled]
        return max(alone, key=lambda trial: trial.validation_ndcg or 0.0, default=None)

    @property
    def cost(self) -> float | None:
        """Of the steps together; None where no step has one, as in a story of before costs were kept."""
        costs = [step.cost for step in self.steps if step.cost is not None]
        return sum(costs) if costs else None

    def to_json(self) -> str:
        """Canonical JSON. A number that is not finite becomes null, and is shown as absent."""
        return json.dumps(_plain(self), sort_keys=True, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`. StoreError naming the field that does not fit."""
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise _damaged(f"it is no JSON: {error}", "") from None
        if isinstance(value, dict) and value.get("schema") != SCHEMA:
            raise _damaged(f"its schema is {value.get('schema')!r}, this version reads {SCHEMA}", "schema")
        story: Self = _read(cls, value, "story")
        return story


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gives it, as the type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        inner = next(each for each in arguments if each is not NoneType)
        return None if value is None else _read(inner, value, where)
    if origin is Literal:
        _require(value in arguments, f"one of {', '.join(map(str, arguments))}", value, where)
        return value
    if origin is tuple:
        _require(isinstance(value, list), "a list", value, where)
        return tuple(_read(arguments[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if origin is not None:
        _require(isinstance(value, dict), "an object", value, where)
        return {name: _read(arguments[1], each, f"{where}.{name}") for name, each in value.items()}
    if is_dataclass(kind):
        return _read_part(kind, value, where)
    allowed = (int, float) if kind is float else kind
    right = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    _require(right, kind.__name__, value, where)
    return float(value) if kind is float else value


def _read_part(kind: Any, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), "an object", value, where)
    hints = get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in value]
    if unknown or missing:
        raise _damaged(f"{'unknown' if unknown else 'missing'} field {(unknown or missing)[0]}", where)
    return kind(**{name: _read(hints[name], each, f"{where}.{name}") for name, each in value.items()})


def _require(right: bool, expected: str, found: Any, where: str) -> None:
    if not right:
        raise _damaged(f"expected {expected}, found {repr(found)[:60]}", where)


def _damaged(what: str, where: str) -> StoreError:
    return StoreError(f"a night's story cannot be read: {what}", where=where, mend="Run the night again.")
