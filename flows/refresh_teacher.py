"""A new teacher now, whatever the age of the one there is: weekly, or when the monitor finds decay.

It is judged on the same users as the teacher before it, and labels what there is, so that the next night is cheap.
"""

from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from recsys.config import (
    BlendConfig,
    CostConfig,
    DataConfig,
    EventsConfig,
    GateConfig,
    LabelsConfig,
    LmTeacherConfig,
    NightConfig,
    TeacherConfig,
    TextConfig,
)
from tasks.build_dataset import build_dataset
from tasks.evaluate_models import evaluate_teacher
from tasks.judge import judge_new_teacher
from tasks.make_soft_labels import make_soft_labels
from tasks.night import Source, open_night
from tasks.promote import promote_teacher
from tasks.refs import Refreshed
from tasks.tell_refreshed import tell_refreshed
from tasks.train_teacher import train_new_teacher
from tasks.validate_events import validate_events

OCCASION = "refresh-teacher"


def run_name() -> str:
    """When it was scheduled for."""
    return f"{OCCASION} {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@flow(name=OCCASION, flow_run_name=run_name, persist_result=False)
def refresh_teacher(
    source: Annotated[Source, Field(title="Source", description="The shop's events and items")] = Source(),  # noqa: B008
    events: EventsConfig = EventsConfig(),  # noqa: B008
    data: DataConfig = DataConfig(),  # noqa: B008
    text: TextConfig = TextConfig(),  # noqa: B008
    teacher: TeacherConfig = TeacherConfig(),  # noqa: B008
    lm_teacher: LmTeacherConfig = LmTeacherConfig(),  # noqa: B008
    blend: BlendConfig = BlendConfig(),  # noqa: B008
    labels: LabelsConfig = LabelsConfig(),  # noqa: B008
    gate: GateConfig = GateConfig(),  # noqa: B008
    cost: CostConfig = CostConfig(),  # noqa: B008
) -> Refreshed:
    """Train, judge and, if it clears baselines and predecessor, crown one teacher. Its knobs are to be those of the nights."""
    config = NightConfig(
        events=events, data=data, text=text, teacher=teacher, lm_teacher=lm_teacher, blend=blend,
        labels=labels, gate=gate, cost=cost,
    )  # fmt: skip
    with open_night(source, config, OCCASION) as night:
        accepted = validate_events(night)
        dataset = build_dataset(night, accepted)
        master = train_new_teacher(night, dataset)
        reports = evaluate_teacher(night, dataset, master)
        verdict = judge_new_teacher(night, reports)
        refreshed = promote_teacher(night, dataset, master, verdict)
        if refreshed.is_champion:
            make_soft_labels(night, dataset, master)
        return tell_refreshed(night, dataset, reports, refreshed)
