"""A night's refs retold as the plain numbers and words of a Story."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from recsys.compress import margin
from recsys.dataset import Dataset
from recsys.disagreement import Disagreement
from recsys.evaluate import ModelReport
from recsys.events import Validation
from recsys.explanation import explain
from recsys.gate import Verdict
from recsys.runtime import Runtime
from recsys.shared_histories import shared_histories
from recsys.slices import slices_of
from recsys.story import (
    CriterionRow,
    CurvePoint,
    DataFlow,
    DisagreementRow,
    Estimate,
    Example,
    FileRow,
    GridPoint,
    KnobRow,
    LineageNode,
    Pick,
    ShiftRow,
    SliceRow,
    StepRow,
    Story,
    TrialRow,
    Unit,
)
from tasks.batch_scores import newest
from tasks.bill import cost_since_promotion
from tasks.figures import figures
from tasks.lineage import walk
from tasks.night import Step
from tasks.opening import open_build, open_dataset
from tasks.refs import AcceptedRef, ArtifactRef, DatasetRef, Outcome, ReportsRef

EXAMPLES = 3
SHIFTS = 3  # items each way
SHOWN = 10  # titles of a list
STEPS = ("validate", "build", "teach", "label", "distil", "compress", "evaluate", "judge", "promote")
UNITS: Mapping[str, tuple[Unit, str]] = {
    "teacher_kept": ("share", "higher"),
    "unseen_items": ("share", "higher"),
    "float_student": ("change", "higher"),
    "champion": ("change", "higher"),
    "neighbours": ("change", "higher"),
    "size_ratio": ("share", "lower"),
    "size_mb": ("number", "lower"),
    "latency": ("ms", "lower"),
    "coverage": ("share", "higher"),
    "exposure": ("share", "lower"),
    "popularity": ("ratio", "lower"),
    "membership": ("number", "lower"),
    "test_users": ("count", "higher"),
    "finite": ("count", "lower"),
    "comparable": ("count", "lower"),
}


def story_of(
    at: Step, accepted: AcceptedRef, dataset: DatasetRef, artifact: ArtifactRef, reports: ReportsRef, outcome: Outcome
) -> Story:
    """Everything the report shows, read from the night's objects."""
    verdict = Verdict.from_json((at.store.open("judge", outcome.verdict.digest) / "verdict.json").read_text())
    served = Runtime.open(at.store.open(artifact.step, artifact.digest))
    digests = {role: ref.digest for role, ref in reports.by_role().items()}
    opened = {role: ModelReport.load(at.store.open("evaluate", digest)) for role, digest in digests.items()}
    learnt_from = open_dataset(at.store, dataset)
    points = _read(at, "compress", artifact.grid, "grid.json")
    most = _grid_margin(points, at.night.config.compress.max_loss)
    return Story(
        shop=at.night.source.shop,
        as_of=dataset.as_of,
        decision=outcome.decision,
        sentence=outcome.sentence,
        advice=outcome.advice,
        registry=_registry(outcome),
        scores=_scores(at),
        cut_short=outcome.cut_short,
        models=tuple(figures(at.store, role, digest, opened[role]) for role, digest in digests.items()),
        teacher_curve=_teacher_curve(at, artifact),
        trials=tuple(_trials(at, artifact)),
        knobs=tuple(_knobs(at, artifact)),
        grid=tuple(_grid(points, most)),
        grid_max_loss=most,
        criteria=tuple(_criteria(verdict)),
        slices=tuple(_slices(verdict, opened)),
        slice_max_loss=at.night.config.gate.slice_loss,
        steps=tuple(_steps(at)),
        currency=at.night.config.cost.currency,
        cost_since_promotion=cost_since_promotion(at),
        examples=tuple(examples_of(learnt_from, served)),
        disagreement=disagreement_of(learnt_from, opened["artifact"], opened["teacher"]),
        data=_data(at, accepted, dataset),
        lineage=tuple(_lineage(at, artifact)),
    )


def _scores(at: Step) -> str:
    scores = newest(at.settings)
    return f"the newest batch scores: {scores.sentence}" if scores else ""


def _registry(outcome: Outcome) -> str:
    champion = f"version {outcome.champion} is champion" if outcome.champion else "there is no champion yet"
    return f"tonight's candidate is version {outcome.version}; {champion}" if outcome.version else champion


def _teacher_curve(at: Step, artifact: ArtifactRef) -> tuple[CurvePoint, ...]:
    curve = _read(at, "teach", artifact.teacher, "curve.json")
    return tuple(CurvePoint(point["epoch"], point["loss"], point["validation_ndcg"]) for point in curve)


def _trials(at: Step, artifact: ArtifactRef) -> Iterator[TrialRow]:
    seconds = at.store.measured("distil", artifact.student)["seconds"]
    for trial, took in zip(_read(at, "distil", artifact.student, "trials.json"), seconds, strict=True):
        yield TrialRow(
            number=trial["number"],
            width=trial["width"],
            weight=trial["weight"],
            k=trial["k"],
            state=trial["state"],
            validation_ndcg=trial["validation_ndcg"],
            seconds=took,
            best=trial["best"],
            curve=tuple(CurvePoint(e["number"], e["loss"], e["validation_ndcg"]) for e in trial["epochs"]),
            temperature=trial.get("temperature", 1.0),  # trials of before there was a choice
            dropout=trial.get("dropout"),
        )


def _knobs(at: Step, artifact: ArtifactRef) -> Iterator[KnobRow]:
    """Nothing where the search had too few trials, or is of before they were weighed."""
    shares = at.store.measured("distil", artifact.student).get("importances", {})
    for name, share in sorted(shares.items(), key=lambda pair: (-pair[1], pair[0])):
        yield KnobRow(name, share)


def _grid_margin(points: Any, max_loss: float) -> float:
    """The loss that the points were judged by; the float student is among them only where none was within it."""
    return margin([point["change"]["low"] for point in points if point["table_bits"] < 32], max_loss)


def _grid(points: Any, most: float) -> Iterator[GridPoint]:
    for point in points:
        change = Estimate(**point["change"])
        within = change.low is not None and change.low > -most
        blocks = point.get("keep_blocks", 1.0)  # a grid of before they were cut has none
        whole = point["keep_ffn"] == point["keep_heads"] == blocks == 1
        yield GridPoint(
            keep_ffn=point["keep_ffn"],
            table_bits=point["table_bits"],
            bytes=point["bytes"],
            change=change,
            outcome="chosen" if point["chosen"] else "larger" if within else "refused",
            control=whole and point["recovery"] in ("soft", "hard"),
            reason=point["reason"],
            keep_neighbours=point["keep_neighbours"],
            keep_heads=point["keep_heads"],
            recovery=point["recovery"],
            keep_blocks=blocks,
        )


def _criteria(verdict: Verdict) -> Iterator[CriterionRow]:
    for row in verdict.criteria:
        unit, better = UNITS.get(row.name, ("change" if row.name.startswith("slice_") else "number", "higher"))
        yield CriterionRow(
            name=row.name,
            kind=row.kind,
            value=row.value,
            threshold=row.threshold,
            low=row.low,
            high=row.high,
            outcome=row.outcome,
            proven=row.proven,
            sentence=row.sentence,
            unit=unit,
            better="lower" if better == "lower" else "higher",
        )


def _slices(verdict: Verdict, reports: Mapping[str, ModelReport]) -> Iterator[SliceRow]:
    """The slices of the gate, with the title that says who they are."""
    artifact = reports["artifact"]
    against = "champion" if "champion" in reports else "teacher"
    judged = {row.name: row for row in verdict.criteria}
    for part in slices_of(artifact.history_lengths, artifact.tail_share):
        row = judged.get(f"slice_{part.name}")
        if row is not None:
            yield SliceRow(
                name=part.title,
                users=None if row.value is None else int(part.members.sum()),
                against=against,
                change=Estimate(row.value, row.low, row.high),
                outcome=row.outcome,
            )


def _steps(at: Step) -> Iterator[StepRow]:
    recorded = at.tracking.metrics(at.night.run_id)
    for name in STEPS:
        if f"seconds/{name}" in recorded:
            yield StepRow(
                name,
                seconds=recorded[f"seconds/{name}"],
                reused=recorded[f"reused/{name}"] == 1.0,
                cpu_seconds=recorded[f"cpu_seconds/{name}"],
                gpu_seconds=recorded[f"gpu_seconds/{name}"],
                cost=recorded[f"cost/{name}"],
            )


def examples_of(dataset: Dataset, served: Runtime) -> Iterator[Example]:
    """What `served` recommends for histories that many test users share, with its reasons; no single user's is shown."""
    for shared in shared_histories(dataset.test_cases(), EXAMPLES):
        taken = set(shared.taken.tolist())
        yield Example(
            history=tuple(_title(dataset, code) for code in shared.items),
            taken=tuple(_title(dataset, code) for code in shared.taken[:SHOWN]),
            artifact=tuple(
                Pick(
                    _title(dataset, item.code),
                    taken=item.code in taken,
                    because=_title(dataset, item.reasons[0].code) if item.reasons else "",
                )
                for item in explain(served, shared.items, SHOWN, reasons=1)
            ),
        )


def disagreement_of(dataset: Dataset, artifact: ModelReport, teacher: ModelReport) -> DisagreementRow | None:
    """Where the artifact parts from its teacher, in sums over the test users."""
    found = Disagreement.of(artifact.top[:, :SHOWN], teacher.top[:, :SHOWN], SHIFTS)
    if found is None:
        return None
    more, less = (
        tuple(ShiftRow(_title(dataset, one.code), one.users, one.others) for one in shifts)
        for shifts in (found.more, found.less)
    )
    return DisagreementRow(found.first, found.shared, more, less)


def _title(dataset: Dataset, code: int) -> str:
    catalog = dataset.catalog
    return catalog.titles[code - 1] or catalog.item_ids[code - 1]


def _data(at: Step, accepted: AcceptedRef, dataset: DatasetRef) -> DataFlow:
    made = open_build(at.store, dataset.digest)
    files = []
    for ref in accepted.files:
        validation = Validation.from_json(_read(at, ref.step, ref.digest, "validation.json"))
        files.append(
            FileRow(ref.file, validation.lines, validation.accepted, validation.quarantined, validation.by_rule)
        )
    return DataFlow(
        files=tuple(files),
        kept=made.kept,
        duplicates=made.duplicates,
        left_out=made.left_out,
        repeats=made.repeats,
        after_as_of=made.after_as_of,
        capped=made.capped,
        users=made.users,
        items=made.items,
        validation_users=made.validation_users,
        test_users=made.test_users,
        notes=made.notes,
    )


def _lineage(at: Step, artifact: ArtifactRef) -> Iterator[LineageNode]:
    """Each object once, the artifact first; of what earlier nights handed over only the nearest."""
    nodes = walk(at.store, artifact.digest)
    near = {parent for node in nodes if not node.earlier for parent in node.parents}
    for node in nodes:
        if not node.earlier or node.digest in near:
            yield LineageNode(
                step=node.step,
                digest=node.digest,
                parents=() if node.earlier else node.parents,
                name=node.name,
                count=node.count,
                of=node.of,
                bytes=node.bytes,
                made=node.made,
                earlier=node.earlier,
            )


def _read(at: Step, step: str, digest: str, name: str) -> Any:
    return json.loads((at.store.open(step, digest) / name).read_text())
