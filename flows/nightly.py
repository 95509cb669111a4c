"""A night: validate, build, teach, label, distil, compress, evaluate, judge, promote. Read this file first.

Every step makes an object in the store, addressed by what it is made from, or finds it there; so a night in which
nothing changed computes nothing, and a night that was killed goes on where it stopped.
"""

from typing import Annotated

from prefect import State, flow
from prefect.runtime import flow_run
from pydantic import Field

from recsys.config import (
    BlendConfig,
    CompressConfig,
    CostConfig,
    DataConfig,
    EventsConfig,
    GateConfig,
    LabelsConfig,
    LimitsConfig,
    LmTeacherConfig,
    NightConfig,
    RefreshConfig,
    RunConfig,
    SearchConfig,
    TeacherConfig,
    TextConfig,
)
from tasks.build_dataset import build_dataset
from tasks.compress_student import compress_student
from tasks.distill_student import distill_student
from tasks.evaluate_models import evaluate_models
from tasks.judge import judge
from tasks.make_soft_labels import make_soft_labels
from tasks.night import Source, open_night
from tasks.promote import promote
from tasks.refs import Outcome
from tasks.tell import tell
from tasks.train_teacher import train_teacher
from tasks.turns import my_turn, stepped_aside
from tasks.validate_events import validate_events


def run_name() -> str:
    """The night it was scheduled for, as people look for it."""
    return f"nightly {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@flow(name="nightly", flow_run_name=run_name, persist_result=False)
def nightly(
    source: Annotated[Source, Field(title="Source", description="The shop's events and items")] = Source(),  # noqa: B008
    events: EventsConfig = EventsConfig(),  # noqa: B008
    data: DataConfig = DataConfig(),  # noqa: B008
    text: TextConfig = TextConfig(),  # noqa: B008
    teacher: TeacherConfig = TeacherConfig(),  # noqa: B008
    lm_teacher: LmTeacherConfig = LmTeacherConfig(),  # noqa: B008
    blend: BlendConfig = BlendConfig(),  # noqa: B008
    refresh: RefreshConfig = RefreshConfig(),  # noqa: B008
    labels: LabelsConfig = LabelsConfig(),  # noqa: B008
    search: SearchConfig = SearchConfig(),  # noqa: B008
    compress: CompressConfig = CompressConfig(),  # noqa: B008
    gate: GateConfig = GateConfig(),  # noqa: B008
    limits: LimitsConfig = LimitsConfig(),  # noqa: B008
    run: RunConfig = RunConfig(),  # noqa: B008
    cost: CostConfig = CostConfig(),  # noqa: B008
) -> Outcome | State:
    """Train, distil, compress, judge and, if it is fit, promote one student. A night that another makes up for is skipped."""
    config = NightConfig(
        events=events, data=data, text=text, teacher=teacher, lm_teacher=lm_teacher, blend=blend, refresh=refresh,
        labels=labels, search=search, compress=compress, gate=gate, limits=limits,
        run=run, cost=cost,
    )  # fmt: skip
    turn = my_turn(run)
    if not turn.works:
        return stepped_aside(turn)
    with open_night(source.known_until(turn.until), config) as night:
        accepted = validate_events(night)
        dataset = build_dataset(night, accepted)
        master = train_teacher(night, dataset)
        soft_labels = make_soft_labels(night, dataset, master)
        student = distill_student(night, dataset, soft_labels)
        artifact = compress_student(night, dataset, soft_labels, student)
        reports = evaluate_models(night, dataset, master, student, artifact)
        verdict = judge(night, artifact, reports)
        outcome = promote(night, artifact, reports, verdict)
        return tell(night, accepted, dataset, artifact, reports, outcome)
