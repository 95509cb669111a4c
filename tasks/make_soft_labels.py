"""label: what the teacher thinks at every training position, written once for ever."""

from pathlib import Path

from prefect import task

from recsys.soft_labels import Positions, write_segment
from tasks import computing
from tasks.adapters.store import Recipe
from tasks.night import TASK_OPTIONS, Night, step
from tasks.opening import labelling_of, open_dataset, open_teacher
from tasks.refs import DatasetRef, LabelsRef, Ref, TeacherRef

VERSION = 2


@task(name="label", **TASK_OPTIONS)
def make_soft_labels(night: Night, dataset: DatasetRef, teacher: TeacherRef) -> LabelsRef:
    """The segments written before by this teacher, which are chosen once per dataset, and one with what is new."""
    with step(night, "label", "Writing soft labels") as at:
        config, length = night.config.labels, night.config.data.history_length
        shelf = f"labels-{teacher.digest}-{config.top_k}"
        head = at.store.head(shelf) or {"segments": []}
        decided = at.decide_once(f"{shelf}-for-{dataset.digest}", lambda: head)
        known = [digest for digest in decided["segments"] if at.has("label", digest)]
        recipe = Recipe(
            "label",
            VERSION,
            {**config.model_dump(mode="json"), "length": length},
            (teacher.digest, dataset.digest, *known),
            computing.use(at.settings),
        )

        def build(out: Path) -> None:
            opened, master = open_dataset(at.store, dataset), open_teacher(at.store, teacher)
            segment = write_segment(
                master.model,
                labelling_of(teacher, opened, config),
                Positions.of(opened.histories, length),
                [at.store.open("label", digest) for digest in known],
                out,
                lambda done, total: at.progress(done / max(total, 1), f"{done:,} of {total:,} positions"),
                opinion=master.opinion,
            )
            at.tell(f"{segment.written:,} positions written, {segment.forward:,} read")

        stored = at.make(recipe, build)
        segments = [*known, stored.digest]
        if stored.digest not in head["segments"]:
            sound = [digest for digest in head["segments"] if digest in known or at.has("label", digest)]
            at.store.set_head(shelf, {"segments": [*sound, stored.digest]})
        at.tracking.log_metrics(night.run_id, {"labels/positions_written": float(stored.rows)}, step=0)
        refs = tuple(Ref(step="label", key=at.store.manifest("label", d).key, digest=d) for d in segments)
        return LabelsRef.of(stored, segments=refs, positions=stored.rows, teacher=teacher)
