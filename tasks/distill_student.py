"""distil: an Optuna study of students that learn from clicks and soft labels; the best is kept, with neighbours and text."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prefect import task

from recsys.blending import opinion_for
from recsys.config import BlendConfig
from recsys.dataset import Dataset
from recsys.item_text import TextEncoder
from recsys.knob_importance import knob_importances
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.search import Search, SearchPlace, Trial, search
from recsys.student import Student, grow
from recsys.text_map import TextMap
from recsys.training import Epoch
from recsys.trial import Lessons, Parent
from recsys.unseen_items import fill_unseen
from tasks import computing
from tasks.adapters.store import MEASURED, Recipe, canonical
from tasks.deadline import Got
from tasks.incumbents import student_to_start_from
from tasks.item_vectors import item_vectors
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.opening import open_dataset, open_labels
from tasks.refs import DatasetRef, LabelsRef, StudentRef

VERSION = 10
UNDISTILLED = "undistilled"  # the folder of the best undistilled student, from which the next night's goes on


@task(name="distil", **TASK_OPTIONS)
def distill_student(night: Night, dataset: DatasetRef, labels: LabelsRef) -> StudentRef:
    """The best student of the search. Whether it starts from the champion's weights is decided once per dataset."""
    with step(night, "distil", "Distilling students") as at:
        parent = student_to_start_from(at, dataset)
        encoder = TextEncoder(night.config.text)
        recipe = Recipe(
            "distil",
            VERSION,
            {
                **night.config.search.model_dump(mode="json"),
                "length": night.config.data.history_length,
                "neighbours": night.config.blend.student_neighbours,
                "newest": night.config.blend.newest,
                "text": night.config.text.model_dump(mode="json", exclude={"dims"}),
            },
            (dataset.digest, *labels.digests(), parent or "cold start", encoder.digest()),
            computing.use(at.settings),
        )

        def build(out: Path) -> Got:
            opened = open_dataset(at.store, dataset)
            texts = item_vectors(at, encoder, opened)
            warm = _grown(at, parent, opened.catalog.items, texts, encoder) if parent else None
            found = _search(at, opened, labels, warm, at.store.scratch(recipe))
            text_map = None
            if texts is not None:
                text_map = fill_unseen(found.student, texts, opened.training_counts(), encoder.described())
            found.student.save(out)
            found.control.save(out / UNDISTILLED)
            if text_map:
                text_map.save(out)
            opinion = _opinion(found.student, opened, night.config.blend, _weight(at, parent) if parent else None)
            if opinion:
                opinion.save(out)
            (out / "trials.json").write_bytes(canonical([_without_seconds(trial, found) for trial in found.trials]))
            seconds, importances = [trial.seconds for trial in found.trials], knob_importances(found.trials)
            (out / MEASURED).write_bytes(canonical({"seconds": seconds, "importances": dict(importances)}))
            return Got(len(found.trials), night.config.search.trials, "trials")

        stored, cut = at.make_in_time(recipe, build)
        folder = at.store.open("distil", stored.digest)
        trials = json.loads((folder / "trials.json").read_text())
        best = next(trial for trial in trials if trial["best"])
        undistilled = max(trial["validation_ndcg"] for trial in trials if trial["weight"] == 0)
        at.tell(
            f"best of {len(trials)}: width {best['width']}, dropout {best['dropout']:g}, distillation weight "
            f"{best['weight']:.2f}, validation NDCG@10 {best['validation_ndcg']:.4f}; undistilled {undistilled:.4f}; "
            f"the neighbours' share is {_weight(at, stored.digest):.1f}"
        )
        return StudentRef.of(
            stored,
            width=best["width"],
            weight=best["weight"],
            k=best["k"],
            temperature=best["temperature"],
            trials=len(trials),
            cut_short=cut,
        )


def _grown(at: Step, student: str, items: int, texts: np.ndarray | None, encoder: TextEncoder) -> Parent:
    """Earlier students; the best with rows for tonight's new items, made from their texts where it has learnt how."""
    folder = at.store.open("distil", student)
    earlier, text_map = Student.load(folder), TextMap.load(folder)
    control = Student.load(folder / UNDISTILLED) if (folder / UNDISTILLED).is_dir() else None  # none before 29 November
    if text_map is None or texts is None or text_map.reader != encoder.described():
        return Parent(earlier, control)
    return Parent(grow(earlier, items, rows=torch.from_numpy(text_map.rows(texts[earlier.shape.items :]))), control)


def _weight(at: Step, student: str) -> float:
    """The share of the neighbours in what an earlier student says."""
    opinion = Opinion.load(at.store.open("distil", student))
    return opinion.weight if opinion else 0.0


def _opinion(student: Student, opened: Dataset, blend: BlendConfig, held: float | None) -> Opinion | None:
    """Tonight's neighbours, as the artifact will carry them, at a weight that validation users speak for."""
    if blend.student_neighbours == 0:
        return None
    lists = Neighbourhood.of_training(opened.histories, opened.catalog.items, blend.student_neighbours, blend.newest)
    return opinion_for(student, lists.as_rounded(), opened.validation_cases(), held)


def _search(at: Step, opened: Dataset, labels: LabelsRef, warm: Parent | None, scratch: Path) -> Search:
    config = at.night.config.search
    lessons = Lessons(
        histories=opened.histories,
        items=opened.catalog.items,
        length=at.night.config.data.history_length,
        labels=open_labels(at, opened, labels),
        validation=opened.validation_cases(),
    )

    done: dict[int, float] = {}  # the share of each trial

    def on_epoch(number: int, epoch: Epoch) -> None:
        done[number] = epoch.number / config.epochs
        text = f"trial {number + 1} of {config.trials}, epoch {epoch.number}, NDCG@10 {epoch.validation_ndcg:.4f}"
        at.progress(sum(done.values()) / config.trials, text)

    def on_trial(trial: Trial) -> None:
        done[trial.number] = 1.0
        _record(at, trial)

    return search(
        lessons,
        config,
        SearchPlace(scratch / "study.log", scratch / "weights"),
        warm=warm,
        on_trial=on_trial,
        on_epoch=on_epoch,
        enough=at.out_of_time,
        workers=computing.workers(at.settings),
    )


def _record(at: Step, trial: Trial) -> None:
    """One child run a trial, with its parameters and its curve."""
    run_id = at.tracking.start_child(at.night.run_id, f"trial {trial.number}", {"recsys.state": trial.state})
    recipe = {
        "width": trial.width,
        "dropout": trial.dropout,
        "distillation_weight": trial.weight,
        "k": trial.k,
        "temperature": trial.temperature,
    }
    at.tracking.log_params(run_id, {name: str(value) for name, value in recipe.items()})
    for epoch in trial.epochs:
        metrics = {"loss": epoch.loss, "validation_ndcg_at_10": epoch.validation_ndcg}
        at.tracking.log_metrics(run_id, metrics, step=epoch.number)
    at.tracking.finish(run_id, "FINISHED")


def _without_seconds(trial: Trial, found: Search) -> dict[str, Any]:
    """A trial as it enters the object's identity."""
    value = asdict(trial)
    del value["seconds"]
    value["epochs"] = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in value["epochs"]]
    return {**value, "best": trial.number == found.best.number}
