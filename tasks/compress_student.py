"""compress: prune and quantize the student, export every point of the grid, publish the chosen one as files."""

import shutil
from dataclasses import asdict
from pathlib import Path

from prefect import task

from recsys.artifact import verify
from recsys.compress import Point, compress, grid, neighbours_kept
from recsys.export import Publication
from recsys.losses import Distillation
from recsys.neighbourhood import Opinion
from recsys.recovery import Recovery
from recsys.student import Student
from recsys.text_map import TextMap
from tasks import computing
from tasks.adapters.store import Recipe, canonical
from tasks.deadline import Got
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.opening import open_dataset, open_labels
from tasks.refs import ArtifactRef, DatasetRef, LabelsRef, StudentRef

VERSION = 11
RECOVERED_BY = {"learning_rate", "loss", "seed"}
"""Knobs of the search that the recovery after pruning shares."""


@task(name="compress", **TASK_OPTIONS)
def compress_student(night: Night, dataset: DatasetRef, labels: LabelsRef, student: StudentRef) -> ArtifactRef:
    """The grid, and its chosen point as an object of its own: the files that will be served."""
    with step(night, "compress", "Pruning, quantizing, exporting") as at:
        recipe = Recipe(
            "compress",
            VERSION,
            {
                **night.config.compress.model_dump(mode="json"),
                "recovery": night.config.search.model_dump(mode="json", include=RECOVERED_BY),
                "length": night.config.data.history_length,
            },
            (student.digest, dataset.digest, *labels.digests()),
            computing.use(at.settings),
        )
        grid, cut = at.make_in_time(recipe, lambda out: _compress(at, dataset, labels, student, out))
        folder = at.store.open("compress", grid.digest) / "artifact"
        publish = Recipe("artifact", VERSION, {}, (grid.digest, student.digest, dataset.digest, labels.teacher.digest))
        stored = at.make(publish, lambda out: shutil.copytree(folder, out, dirs_exist_ok=True))
        size = verify(at.store.open("artifact", stored.digest)).model_bytes
        at.tell(f"model.onnx has {size / 1e3:,.0f} kB")
        return ArtifactRef.of(
            stored,
            bytes=size,
            grid=grid.digest,
            student=student.digest,
            teacher=labels.teacher.digest,
            dataset=dataset.digest,
            cut_short=tuple(part for part in (labels.teacher.cut_short, student.cut_short, cut) if part),
        )


def _compress(at: Step, dataset: DatasetRef, labels: LabelsRef, student: StudentRef, out: Path) -> Got:
    """Writes the grid and the artifact; says how many of the points there are."""
    config = at.night.config
    opened = open_dataset(at.store, dataset)
    folder = at.store.open("distil", student.digest)
    publication = Publication(
        catalog=opened.catalog,
        counts=opened.training_counts(),
        repeats=opened.repeats,
        lineage={"dataset": dataset.digest, "teacher": labels.teacher.digest, "student": student.digest},
        opinion=Opinion.load(folder),
        text_map=TextMap.load(folder),
    )
    recovery = Recovery(
        histories=opened.histories,
        objective=Distillation(
            open_labels(at, opened, labels),
            student.weight,
            student.k,
            config.search.loss,
            temperature=student.temperature,
        ),
        learning_rate=config.search.learning_rate,
        validation=opened.validation_cases(),
        seed=config.search.seed,
        distilled=student.weight > 0,
    )
    loaded = Student.load(folder)
    shares = len(neighbours_kept(config.compress, publication))
    expected = len(grid(config.compress, loaded.shape)) * len(config.compress.table_bits) * shares
    seen: list[Point] = []

    def on_point(point: Point) -> None:
        seen.append(point)
        at.progress(
            len(seen) / max(expected, len(seen)),
            f"{point.keep_ffn:.0%} of the feed-forward, {point.keep_heads:.0%} of the heads, "
            f"{point.keep_neighbours:.0%} of the neighbours, {point.table_bits} bits"
            f"{', rounded in training' if point.recovery == 'rounded' else ''}",
        )

    workers = computing.workers(at.settings)
    made = compress(loaded, publication, recovery, config.compress, out / "artifact", on_point, at.out_of_time, workers)
    for number, point in enumerate(made.points):
        _record(at, number, point)
    (out / "grid.json").write_bytes(canonical([asdict(point) for point in made.points]))
    return Got(made.tried, made.asked, "ways to compress")


def _record(at: Step, number: int, point: Point) -> None:
    """One child run a point: the whole grid can be compared in MLflow's page."""
    run_id = at.tracking.start_child(at.night.run_id, f"point {number}", {"recsys.reason": point.reason})
    names = ("keep_ffn", "keep_heads", "keep_blocks", "keep_neighbours", "table_bits", "recovery", "chosen")
    at.tracking.log_params(run_id, {name: str(getattr(point, name)) or "none" for name in names})
    measured = {
        "bytes": point.bytes,
        "validation_ndcg_at_10": point.ndcg,
        "change": point.change.value,
        "change_low": point.change.low,
        "change_high": point.change.high,
    }
    at.tracking.log_metrics(run_id, measured, step=0)
    at.tracking.finish(run_id, "FINISHED")
