"""label: what the teacher thinks at every training position, written once for ever."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task

from recsys.config import LabelsConfig
from recsys.labeller import Agreement, agreement, labeller
from recsys.soft_labels import Positions, write_segment
from tasks import computing
from tasks.adapters.store import MEASURED, Recipe, canonical
from tasks.night import TASK_OPTIONS, Night, step
from tasks.opening import labelling_of, open_dataset, open_teacher
from tasks.refs import DatasetRef, LabelsRef, Ref, TeacherRef

VERSION = 3


@task(name="label", **TASK_OPTIONS)
def make_soft_labels(night: Night, dataset: DatasetRef, teacher: TeacherRef) -> LabelsRef:
    """The segments written before by this teacher, which are chosen once per dataset, and one with what is new."""
    with step(night, "label", "Writing soft labels") as at:
        config, length = night.config.labels, night.config.data.history_length
        shelf = f"labels-{teacher.digest}-{config.top_k}{_kind(config)}"
        head = at.store.head(shelf) or {"segments": []}
        decided = at.decide_once(f"{shelf}-for-{dataset.digest}", lambda: head)
        known = [digest for digest in decided["segments"] if at.has("label", digest)]
        recipe = Recipe(
            "label",
            VERSION,
            {**_knobs(config), "length": length},
            (teacher.digest, dataset.digest, *known),
            computing.use(at.settings),
        )

        def build(out: Path) -> None:
            opened, master = open_dataset(at.store, dataset), open_teacher(at.store, teacher)
            positions, labelled = Positions.of(opened.histories, length), labeller(master, config.teacher_bits)
            segment = write_segment(
                labelled.model,
                labelling_of(teacher, opened, config),
                positions,
                [at.store.open("label", digest) for digest in known],
                out,
                lambda done, total: at.progress(done / max(total, 1), f"{done:,} of {total:,} positions"),
                opinion=labelled.opinion,
                executor=computing.executor(at),
            )
            if labelled is not master:
                found = agreement(master, labelled, positions, segment.labelling.top_k)
                (out / MEASURED).write_bytes(canonical(asdict(found)))
            at.tell(f"{segment.written:,} positions written, {segment.forward:,} read")

        stored = at.make(recipe, build)
        segments = [*known, stored.digest]
        if stored.digest not in head["segments"]:
            sound = [digest for digest in head["segments"] if digest in known or at.has("label", digest)]
            at.store.set_head(shelf, {"segments": [*sound, stored.digest]})
        metrics = {"labels/positions_written": float(stored.rows)}
        if measured := at.store.measured("label", stored.digest):
            at.tell(str(Agreement(**measured)))
            metrics |= {f"labels/teacher_in_8_bits_{name}": float(value) for name, value in measured.items()}
        at.tracking.log_metrics(night.run_id, metrics, step=0)
        refs = tuple(Ref(step="label", key=at.store.manifest("label", d).key, digest=d) for d in segments)
        return LabelsRef.of(stored, segments=refs, positions=stored.rows, teacher=teacher)


_LATER = {"states", "teacher_bits"}


def _knobs(config: LabelsConfig) -> dict[str, Any]:
    """The section in a recipe: knobs that came later only where they are turned, so that earlier labels stay valid."""
    turned = config.model_dump(mode="json", include=_LATER, exclude_defaults=True)
    return {**config.model_dump(mode="json", exclude=_LATER), **turned}


def _kind(config: LabelsConfig) -> str:
    """The end of the name of a shelf: labels of one kind alone are joined."""
    return ("-states" if config.states else "") + (f"-{config.teacher_bits}bit" if config.teacher_bits < 32 else "")
