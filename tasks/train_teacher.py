"""teach: the registry's champion teacher while it is fresh, else a new one."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task

from recsys.dataset import Build, Dataset
from recsys.ensemble import Ensemble, fit_ensemble
from recsys.freshness import freshness
from recsys.item_text import TextEncoder, whitened
from recsys.lm_teacher import fit_lm_teacher
from recsys.sequence_model import ndcg_of
from recsys.teacher import fit_teacher
from recsys.teachers import BlendedTeacher, load_teacher
from recsys.training import Epoch
from recsys.unseen_items import fill_unseen
from tasks import computing
from tasks.adapters.registry import TEACHER
from tasks.adapters.store import Recipe, Stored, canonical
from tasks.deadline import Got
from tasks.incumbents import teacher_for
from tasks.item_vectors import item_vectors
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.opening import open_dataset
from tasks.refs import DatasetRef, TeacherRef

VERSION = 7
DAY = 86_400


@task(name="teach", **TASK_OPTIONS)
def train_teacher(night: Night, dataset: DatasetRef) -> TeacherRef:
    """The teacher that labels tonight. Which earlier one may be used is decided once per dataset and recorded."""
    with step(night, "teach", "Teaching the teacher") as at:
        opened = open_dataset(at.store, dataset)
        standing = at.decide_once(teacher_for(dataset), lambda: _usable_champion(at, opened))
        usable = standing and at.has("teach", standing["digest"])
        stored, cut = (at.reuse("teach", standing["digest"]), "") if usable else _train(at, dataset, opened)
        about = _about(at, stored.digest)
        return TeacherRef.of(stored, items=about["items"], cut_short=cut)


@task(name="teach", **TASK_OPTIONS)
def train_new_teacher(night: Night, dataset: DatasetRef) -> TeacherRef:
    """A new teacher, whatever the age of the one there is. From the same data and knobs it is the same again."""
    with step(night, "teach", "Teaching a new teacher") as at:
        stored, cut = _train(at, dataset, open_dataset(at.store, dataset))
        return TeacherRef.of(stored, items=_about(at, stored.digest)["items"], cut_short=cut)


def _usable_champion(at: Step, dataset: Dataset) -> dict:
    """The digest of the champion teacher if it is from before tonight's cut and fresh; empty otherwise."""
    digest = _teacher_to_use(at, dataset.build)
    if digest is None:
        return {}
    about = _about(at, digest)
    if about["length"] != at.night.config.data.history_length:
        at.tell("the champion teacher reads another length of history; a new one is trained")
        return {}
    found = freshness(
        (dataset.build.as_of - about["as_of"]) / DAY,
        about["validation_ndcg"],
        _validation_ndcg(at, digest, dataset),
        at.night.config.refresh,
    )
    at.tell(found.reason)
    return {"digest": digest} if found.fresh else {}


def _teacher_to_use(at: Step, tonight: Build) -> str | None:
    """Digest of the champion teacher or, where it knows what tonight must not, of the newest before it that does not."""
    champion = at.registry.alias(TEACHER, "champion")
    if champion is None or not at.has("teach", champion.digest):
        return None
    if _from_before(_about(at, champion.digest), tonight):
        return champion.digest
    fit = [v for v in at.registry.versions(TEACHER) if v.tags.get("recsys.decision") != "REJECT"]
    earlier = [v for v in fit if at.has("teach", v.digest) and _from_before(_about(at, v.digest), tonight)]
    if not earlier:
        at.tell("the champion teacher has seen events from after tonight's cut; a new one is trained")
        return None
    at.tell("the champion teacher has seen events from after tonight's cut; an earlier one is looked at")
    return max(earlier, key=lambda version: int(_about(at, version.digest)["as_of"])).digest


def _from_before(about: dict, tonight: Build) -> bool:
    """Whether a teacher has neither learnt from after tonight's cut nor been chosen on days from after its as-of."""
    cut = tonight.validation_start
    return about["cut"] is not None and cut is not None and about["cut"] <= cut and about["as_of"] <= tonight.as_of


def _validation_ndcg(at: Step, digest: str, dataset: Dataset) -> np.ndarray:
    teacher = load_teacher(at.store.open("teach", digest))
    return ndcg_of(teacher.scorer("teacher"), dataset.validation_cases())


def _train(at: Step, ref: DatasetRef, dataset: Dataset) -> tuple[Stored, str]:
    """A new teacher, and how far it got when the time budget cut its training short."""
    config = at.night.config
    length = config.data.history_length
    lm = config.lm_teacher if config.lm_teacher.backbone else None
    encoder = TextEncoder(config.text)
    kind = {"lm_teacher": lm.model_dump(mode="json")} if lm else {"teacher": config.teacher.model_dump(mode="json")}
    recipe = Recipe(
        "teach",
        VERSION,
        {
            **kind,
            "text": config.text.model_dump(mode="json"),
            "blend": config.blend.model_dump(mode="json", exclude={"student_neighbours"}),
            "length": length,
        },
        (ref.digest, encoder.digest()),
        computing.use_by_ranks(at.settings),
    )

    def build(out: Path) -> Got:
        texts = item_vectors(at, encoder, dataset)
        cases = dataset.validation_cases()
        epochs = lm.epochs if lm else config.teacher.epochs * config.teacher.members
        child = at.tracking.start_child(at.night.run_id, "teacher", {})

        def on_epoch(epoch: Epoch) -> None:
            at.progress(
                epoch.number / epochs,
                f"epoch {epoch.number} of {epochs}, validation NDCG@10 {epoch.validation_ndcg:.4f}",
            )
            at.tracking.log_metrics(
                child, {"loss": epoch.loss, "validation_ndcg_at_10": epoch.validation_ndcg}, step=epoch.number
            )

        one = computing.by_ranks(at.settings, fit_lm_teacher if lm else fit_teacher)
        fit: Callable[..., Any] = partial(fit_ensemble, fit=one) if config.teacher.members > 1 and not lm else one
        model, curve = fit(
            dataset.histories,
            cases,
            dataset.catalog.items,
            None if texts is None else whitened(texts, config.text.dims),
            lm or config.teacher,
            length=length,
            redraw_baskets=dataset.has_baskets,
            on_epoch=on_epoch,
            enough=at.out_of_time,
            checkpoint=at.store.scratch(recipe) / "teacher",
        )
        if texts is not None:
            for member in model.teachers if isinstance(model, Ensemble) else (model,):
                fill_unseen(member, texts, dataset.training_counts(), encoder.described())
        teacher = BlendedTeacher.of(model, dataset.histories, cases, config.blend)
        teacher.save(out)
        reached = float(ndcg_of(teacher.scorer("teacher"), cases).mean())
        at.tell(f"the neighbours' share is {teacher.weight:.1f}; validation NDCG@10 {reached:.4f}")
        about = {
            "items": dataset.catalog.items,
            "length": length,
            "as_of": dataset.build.as_of,
            "cut": dataset.build.validation_start,
            "validation_ndcg": reached,
            "neighbours_weight": teacher.weight,
        }
        (out / "about.json").write_bytes(canonical(about))
        (out / "curve.json").write_bytes(
            canonical([{"epoch": e.number, "loss": e.loss, "validation_ndcg": e.validation_ndcg} for e in curve])
        )
        at.tracking.finish(child, "FINISHED")
        return Got(len(curve), epochs, "epochs")

    return at.make_in_time(recipe, build)


def _about(at: Step, digest: str) -> dict:
    about: dict = json.loads((at.store.open("teach", digest) / "about.json").read_text())
    return about
