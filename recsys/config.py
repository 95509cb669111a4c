"""Every knob, on one page. Imports only pydantic and the errors. Defaults are production values.

A section is a group of at most seven knobs, frozen so that it can be part of a key, closed so that a typo is an error.
The sections are the arguments of the nightly flow, and so the form in the Prefect UI.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from recsys.errors import ConfigError

SoftLossName = Literal["topk_tail", "topk_catalogue", "sampled", "rrd", "hard_label", "hidden"]
"""The losses of recsys/soft_losses.py, and that of recsys/hidden_loss.py."""

MOST = 1_000_000_000
"""The largest number of any knob: every engine holds it."""


class Section(BaseModel):
    """A group of knobs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_a_number_that_engines_hold(cls, value: object) -> object:
        if isinstance(value, int | float) and abs(value) > MOST:
            raise ValueError(f"input should be at most {MOST:,}")
        return value


class EventsConfig(Section):
    """Which events are wishes, and how much of the input may be refused."""

    min_rating: float | None = Field(
        None,
        title="Minimum rating",
        description="Events rated below this are no wish and are left out; empty: all count",
    )
    event_weights: Mapping[str, Annotated[float, Field(ge=0, le=1000)]] = Field(
        {"view": 0.2, "cart": 0.5, "like": 0.7, "rate": 1.0, "purchase": 1.0},
        title="Weight of each kind of event",
        description="Weight in the loss (0 leaves the kind out, 1 counts fully); kinds not named count 1",
    )
    max_quarantined: float = Field(
        0.2,
        ge=0,
        le=1,
        title="Largest quarantined share",
        description="Share of rows of one file; above it the night stops",
    )
    max_user_events: int = Field(
        10_000,
        ge=10,
        title="Events kept of one user",
        description="Only the newest are kept of a user with more (count)",
    )


class DataConfig(Section):
    """How the events are split in time, and what counts as relevant."""

    split: Literal["temporal", "leave_one_out"] = Field(
        "temporal",
        title="Split",
        description="temporal: last days; leave_one_out: last event of each user, as papers do",
    )
    repeats: Literal["exclude", "allow"] = Field(
        "exclude", title="Repeats", description="exclude: only items new to the user are relevant; allow: any item"
    )
    test_days: int = Field(7, ge=1, le=365, title="Test window", description="Days before the as-of time")
    validation_days: int = Field(7, ge=1, le=365, title="Validation window", description="Days before the test window")
    min_users: int = Field(
        100,
        ge=1,
        title="Users a window needs",
        description="A window is extended backwards until it has so many (count)",
    )
    history_length: int = Field(
        100, ge=4, le=1024, multiple_of=2, title="History length", description="Newest items a model reads (count)"
    )


class TextConfig(Section):
    """The language model that reads the items."""

    encoder: str = Field(
        "all-MiniLM-L6-v2",
        title="Text encoder",
        description="all-MiniLM-L6-v2 (comes with the package), a Hugging Face hub id, or a local directory",
    )
    pooling: Literal["mean", "last"] = Field("mean", title="Pooling", description="mean of the tokens, or the last one")
    dims: int = Field(
        128, ge=2, le=1024, title="Text dimensions", description="Whitened principal components kept (count)"
    )
    max_tokens: int = Field(64, ge=8, le=512, title="Tokens read", description="Tokens of one item's text (count)")


class TeacherConfig(Section):
    """The small teacher: a causal decoder over item vectors (id + whitened text)."""

    width: int = Field(128, ge=8, le=1024, multiple_of=8, title="Width", description="Size of an item vector (count)")
    blocks: int = Field(1, ge=1, le=12, title="Blocks", description="Transformer blocks (count)")
    dropout: float = Field(0.5, ge=0, lt=1, title="Dropout", description="Share of activations dropped in training")
    epochs: int = Field(20, ge=1, le=1000, title="Epochs", description="Passes over the training positions (count)")
    learning_rate: float = Field(2e-3, gt=0, le=1, title="Learning rate", description="Peak of warm-up and cosine")
    members: int = Field(
        1, ge=1, le=8, title="Members", description="Teachers whose mean logits are the teacher, each trained (count)"
    )
    seed: int = Field(0, ge=0, title="Seed", description="Of initial weights, batch order and dropout")


class LmTeacherConfig(Section):
    """A Hugging Face decoder as the teacher's backbone, tuned with LoRA. Empty backbone: the small teacher is used."""

    backbone: str = Field(
        "", title="Backbone", description="Hub id or directory of a causal language model; empty: off"
    )
    layers: int = Field(4, ge=1, le=128, title="Layers kept", description="First layers of the language model (count)")
    lora_rank: int = Field(8, ge=1, le=256, title="LoRA rank", description="Rank of the adapters (count)")
    head_width: int = Field(64, ge=8, le=256, title="Head width", description="Width items are scored in (count)")
    epochs: int = Field(5, ge=1, le=1000, title="Epochs", description="Passes over the training positions (count)")
    learning_rate: float = Field(5e-4, gt=0, le=1, title="Learning rate", description="Peak of warm-up and cosine")


class BlendConfig(Section):
    """The neighbours that teacher and student are blended with, each at the weight that does best on validation users."""

    neighbours: int = Field(
        20,
        ge=0,
        le=1000,
        title="Teacher's neighbours",
        description="Nearest items the teacher keeps of each item (count); 0: no blend",
    )
    student_neighbours: int = Field(
        10,
        ge=0,
        le=100,
        title="Student's neighbours",
        description="Nearest items that are served with the student, three bytes each (count); 0: no blend",
    )
    newest: int = Field(
        50, ge=1, le=1024, title="Newest items", description="Newest items of a history that are asked (count)"
    )


class RefreshConfig(Section):
    """When the teacher is trained anew, and what a night starts from."""

    max_age_days: float = Field(7, ge=0, title="Teacher's age", description="Days between its as-of and tonight's")
    max_decay: float = Field(
        0.05,
        ge=0,
        le=1,
        title="Teacher's decay",
        description="Relative loss of validation NDCG@10 since it was trained",
    )
    warm_start: bool = Field(
        True,
        title="Warm start",
        description="Start the student from the champion's weights while the teacher is the same",
    )


class LabelsConfig(Section):
    """The soft labels: what is kept of the teacher's distribution at a training position."""

    top_k: int = Field(
        50, ge=1, le=1000, title="Items kept", description="Items with their log-probability a position (count)"
    )
    states: bool = Field(
        False, title="Keep states", description="For the loss hidden: 2 bytes a component and position"
    )
    teacher_bits: Literal[8, 32] = Field(
        32,
        title="Bits of the teacher",
        json_schema_extra={"minimum": 8, "maximum": 32},
        description="8: weights are rounded before labelling, and the agreement with 32 (float) is measured",
    )


class SearchConfig(Section):
    """The students that are tried. The ranges of weight and K are in recsys/search.py."""

    trials: int = Field(
        6, ge=2, le=1000, title="Trials", description="Finished trials, the undistilled ones included (count)"
    )
    widths: tuple[Annotated[int, Field(ge=4, le=1024)], ...] = Field(
        (64, 32), min_length=1, title="Widths", description="Sizes of an item vector that may be tried"
    )
    epochs: int = Field(15, ge=1, le=1000, title="Epochs", description="Passes a trial, fewer on a warm start (count)")
    learning_rate: float = Field(3e-3, gt=0, le=1, title="Learning rate", description="Peak of warm-up and cosine")
    dropouts: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.2, 0.05), min_length=1, title="Dropouts", description="Shares of activations dropped that may be tried"
    )
    loss: SoftLossName = Field(
        "topk_catalogue",
        title="Loss",
        description="topk_tail: KL, the rest as one bucket; topk_catalogue: cross-entropy with the scaled top K; "
        "sampled: with draws from it; rrd: order of the top K; hard_label: the first rank alone; "
        "hidden: KL over all items at a temperature, needs labels.states",
    )
    seed: int = Field(0, ge=0, title="Seed", description="Of the sampler and of every trial")


class CompressConfig(Section):
    """What is tried to make the student smaller. The smallest point within the loss is chosen, on validation."""

    keep_ffn: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0, 0.5, 0.25),
        min_length=1,
        title="Feed-forward kept",
        description="Shares of feed-forward units kept that are tried",
    )
    keep_heads: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0, 0.5),
        min_length=1,
        title="Heads kept",
        description="Shares of attention heads kept that are tried, below 1 beside the fewest feed-forward units only",
    )
    keep_neighbours: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (1.0, 0.5, 0.0),
        min_length=1,
        title="Neighbours kept",
        description="Shares of the student's neighbours that are tried, the nearest of each item; 0: none",
    )
    table_bits: tuple[Literal[4, 8, 32], ...] = Field(
        (8, 4),
        min_length=1,
        title="Bits of the item table",
        description="4, 8: whole numbers and a scale a row; 32: float",
    )
    recovery_epochs: float = Field(
        0.25,
        ge=0,
        le=100,
        title="Recovery",
        description="Epochs after pruning, control included, and with rounded weights where rounding loses too much",
    )
    max_loss: float = Field(
        0.02,
        ge=0,
        le=1,
        title="Largest loss",
        description="Relative loss of NDCG@10 to the float student; a point may use half of it on validation users",
    )


class GateConfig(Section):
    """Quality a student must show before it may be promoted. Shares are relative: 0.02 = 2 %."""

    min_users: int = Field(100, ge=1, title="Test users", description="Below this many the verdict is HOLD (count)")
    teacher_retention: float = Field(
        0.90, ge=0, le=1, title="Teacher kept", description="Share of the teacher's NDCG@10 to be proven kept"
    )
    quantization_loss: float = Field(
        0.02,
        ge=0,
        le=1,
        title="Loss to the float student",
        description="Relative loss of NDCG@10 proven not to be exceeded",
    )
    champion_loss: float = Field(
        0.02, ge=0, le=1, title="Loss to the champion", description="Relative loss of NDCG@10 tolerated (guard)"
    )
    neighbours_loss: float = Field(
        0.05, ge=0, le=1, title="Loss to the neighbours", description="Relative loss of NDCG@10 tolerated (guard)"
    )
    slice_loss: float = Field(
        0.10, ge=0, le=1, title="Loss of a slice", description="Relative loss no slice may be proven to exceed (guard)"
    )
    unseen_retention: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Unseen items",
        description="Share of the teacher's HR@10 on items without training events to be kept (guard); 0: not asked",
    )


class LimitsConfig(Section):
    """What an artifact may cost and how it must behave, and how strictly the gate reads its guards."""

    size_ratio: float = Field(0.25, gt=0, title="Size", description="Largest share of the teacher's bytes")
    size_mb: float = Field(100, gt=0, title="Size budget", description="Largest artifact (MB)")
    latency_ms: float = Field(20, gt=0, title="Latency budget", description="p99 of one request by the runtime (ms)")
    coverage_ratio: float = Field(
        0.5, ge=0, title="Coverage", description="Smallest share of the teacher's coverage@10"
    )
    popularity_ratio: float = Field(
        1.25,
        gt=0,
        title="Popularity",
        description="Largest ratio to the teacher of the mean popularity of what is recommended",
    )
    exposure_rise: float = Field(
        0.1, gt=0, title="Exposure", description="Largest rise of the share of users shown an item, if doubled"
    )
    membership_auc: float = Field(
        0.8,
        ge=0.5,
        le=1,
        title="Membership",
        description="Largest AUC of the attack on the artifact, .5 is guessing; 1: off",
    )
    strict: bool = Field(False, title="Strict", description="Guards must be proven, as proofs are; else HOLD")


class RunConfig(Section):
    """Which nights are run, how long one may take, and who has the last word before a promotion."""

    catch_up: Literal["latest", "all", "none"] = Field(
        "latest",
        title="Missed nights",
        description="What is made up for when the machine was off: the latest night, all of them, none",
    )
    budget_minutes: float = Field(
        0,
        ge=0,
        le=10_080,
        title="Time budget",
        description="Minutes after which the night goes on with the best it has so far; 0: no limit",
    )
    approval: Literal["auto", "manual", "when_strong"] = Field(
        "auto",
        title="Approval",
        description="auto: the gate promotes; manual: a person must approve; when_strong: a person, unless all is proven",
    )
    approval_hours: float = Field(
        24, gt=0, le=720, title="Approval expires", description="Hours after which what nobody approved is rejected"
    )


class CostConfig(Section):
    """What computing costs. Prices of the night in the report and in MLflow."""

    cpu_hour: float = Field(0.04, ge=0, title="CPU price", description="Price of one hour of one CPU core")
    gpu_hour: float = Field(2.5, ge=0, title="GPU price", description="Price of one hour of one GPU")
    currency: str = Field("EUR", max_length=8, title="Currency", description="In which both prices are")


class MonitorConfig(Section):
    """When the monitor calls a model stale or decayed. Argument of the flow monitor, no part of a night."""

    window_days: int = Field(7, ge=1, le=365, title="Window", description="Days of later events that are looked at")
    min_users: int = Field(
        50, ge=1, title="Users needed", description="Below this many nothing is concluded from their hits (count)"
    )
    decay: float = Field(
        0.2, ge=0, le=1, title="Decay", description="Relative loss of hit rate to the neighbours' that calls for action"
    )
    drift: float = Field(0.25, gt=0, title="Drift", description="Population stability index of a field that drifted")
    max_age_days: float = Field(
        3, gt=0, title="Staleness", description="Days since the newest event, or the last night that ended well"
    )
    on_decay: Literal["tell", "refresh", "propose_rollback"] = Field(
        "refresh", title="On decay", description="tell only, refresh the teacher, or propose a rollback"
    )


class NightConfig(Section):
    """The resolved configuration of a night: every section, whole."""

    events: EventsConfig = EventsConfig()
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    teacher: TeacherConfig = TeacherConfig()
    lm_teacher: LmTeacherConfig = LmTeacherConfig()
    blend: BlendConfig = BlendConfig()
    refresh: RefreshConfig = RefreshConfig()
    labels: LabelsConfig = LabelsConfig()
    search: SearchConfig = SearchConfig()
    compress: CompressConfig = CompressConfig()
    gate: GateConfig = GateConfig()
    limits: LimitsConfig = LimitsConfig()
    run: RunConfig = RunConfig()
    cost: CostConfig = CostConfig()

    @model_validator(mode="after")
    def _labels_are_what_the_loss_needs(self) -> Self:
        if self.search.loss == "hidden" and not self.labels.states:
            said = "the loss hidden learns from the teacher's states, and labels.states is false"
            raise ConfigError(said, where="search.loss", mend="Set labels.states to true.")
        return self
