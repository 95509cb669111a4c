"""What a night would reuse and make, and why: the steps of `nightly` rehearsed on a store that makes nothing."""

from dataclasses import dataclass
from typing import Literal

from recsys.config import NightConfig
from tasks.build_dataset import build_dataset
from tasks.compress_student import compress_student
from tasks.distill_student import distill_student
from tasks.estimates import Estimate, estimate
from tasks.evaluate_models import evaluate_models
from tasks.explain import why
from tasks.judge import judge
from tasks.make_soft_labels import make_soft_labels
from tasks.night import Source
from tasks.refs import VerdictRef
from tasks.rehearsal import RehearsedNight, WouldMake
from tasks.storyteller import STEPS
from tasks.train_teacher import train_teacher
from tasks.validate_events import validate_events
from tasks.workshop import Workshop

What = Literal["reuse", "compute", "depends"]


@dataclass(frozen=True)
class PlannedStep:
    """One step of tonight. `depends`: whether it is found or made only the step before will tell."""

    name: str
    what: What
    why: str
    estimate: Estimate


def plan(workshop: Workshop, source: Source, config: NightConfig) -> tuple[PlannedStep, ...]:
    """Every step in order. Nothing is trained, and nothing is written but what readers may write.

    Raises what the night itself would raise for its input.
    """
    night = RehearsedNight(run_id="", source=source, config=config).on(workshop)
    made: WouldMake | None = None
    verdict = None
    try:
        verdict = _rehearsed(night)
    except WouldMake as would:
        made = would
    planned = [_found(workshop, step.name) for step in night.begun if step.ended]
    if made is not None:
        at = night.begun[-1]
        reason = why(workshop.store, made.recipe)
        reason = f"{at.said}: {reason}" if at.name == "validate" and at.said else reason
        planned.append(_step(workshop, at.name, "compute", reason))
    elif verdict is not None:
        planned.append(_promotion(workshop, verdict))
    before = planned[-1].name
    planned += [_step(workshop, name, "depends", f"on {before}") for name in STEPS[len(planned) :]]
    return tuple(planned)


def _rehearsed(night: RehearsedNight) -> VerdictRef:
    """The sentence of flows/nightly.py as far as the verdict. WouldMake where something must be made."""
    accepted = validate_events.fn(night)
    dataset = build_dataset.fn(night, accepted)
    master = train_teacher.fn(night, dataset)
    soft_labels = make_soft_labels.fn(night, dataset, master)
    student = distill_student.fn(night, dataset, soft_labels)
    artifact = compress_student.fn(night, dataset, soft_labels, student)
    reports = evaluate_models.fn(night, dataset, master, student, artifact)
    return judge.fn(night, artifact, reports)


def _found(workshop: Workshop, name: str) -> PlannedStep:
    return _step(workshop, name, "reuse", "made before from the same")


def _promotion(workshop: Workshop, verdict: VerdictRef) -> PlannedStep:
    if verdict.decision == "NO CHANGE":
        return _step(workshop, "promote", "reuse", verdict.sentence)
    return _step(workshop, "promote", "compute", f"the verdict is {verdict.decision}: {verdict.sentence}")


def _step(workshop: Workshop, name: str, what: What, reason: str) -> PlannedStep:
    return PlannedStep(name, what, reason, estimate(workshop.store, workshop.tracking, name, made=what != "reuse"))
