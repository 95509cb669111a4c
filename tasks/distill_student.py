"""distil: an Optuna study of students that learn from clicks and soft labels; the best one is kept, with neighbours."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task

from recsys.blending import opinion_for
from recsys.config import BlendConfig
from recsys.dataset import Dataset
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.search import Lessons, Search, SearchPlace, Trial, search
from recsys.student import Student
from recsys.training import Epoch
from tasks import computing
from tasks.adapters.store import Recipe, canonical
from tasks.deadline import Got
from tasks.incumbents import student_to_start_from
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.opening import open_dataset, open_labels
from tasks.refs import DatasetRef, LabelsRef, StudentRef

VERSION = 4


@task(name="distil", **TASK_OPTIONS)
def distill_student(night: Night, dataset: DatasetRef, labels: LabelsRef) -> StudentRef:
    """The best student of the search. Whether it starts from the champion's weights is decided once per dataset."""
    with step(night, "distil", "Distilling students") as at:
        parent = student_to_start_from(at, dataset, labels)
        recipe = Recipe(
            "distil",
            VERSION,
            {
                **night.config.search.model_dump(mode="json"),
                "length": night.config.data.history_length,
                "neighbours": night.config.blend.student_neighbours,
                "newest": night.config.blend.newest,
            },
            (dataset.digest, *labels.digests(), parent or "cold start"),
            computing.use(at.settings),
        )

        def build(out: Path) -> Got:
            opened = open_dataset(at.store, dataset)
            found = _search(at, opened, labels, parent, at.store.scratch(recipe))
            found.student.save(out)
            opinion = _opinion(found.student, opened, night.config.blend, _weight(at, parent) if parent else None)
            if opinion:
                opinion.save(out)
            (out / "trials.json").write_bytes(canonical([_without_seconds(trial, found) for trial in found.trials]))
            (out / "measured.json").write_bytes(canonical({"seconds": [trial.seconds for trial in found.trials]}))
            return Got(len(found.trials), night.config.search.trials, "trials")

        stored, cut = at.make_in_time(recipe, build)
        folder = at.store.open("distil", stored.digest)
        trials = json.loads((folder / "trials.json").read_text())
        best = next(trial for trial in trials if trial["best"])
        at.tell(
            f"best of {len(trials)}: width {best['width']}, distillation weight {best['weight']:.2f}, "
            f"validation NDCG@10 {best['validation_ndcg']:.4f}; undistilled {trials[0]['validation_ndcg']:.4f}; "
            f"the neighbours' share is {_weight(at, stored.digest):.1f}"
        )
        return StudentRef.of(
            stored, width=best["width"], weight=best["weight"], k=best["k"], trials=len(trials), cut_short=cut
        )


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


def _search(at: Step, opened: Dataset, labels: LabelsRef, parent: str | None, scratch: Path) -> Search:
    config = at.night.config.search
    lessons = Lessons(
        histories=opened.histories,
        items=opened.catalog.items,
        length=at.night.config.data.history_length,
        labels=open_labels(at, opened, labels),
        validation=opened.validation_cases(),
    )

    def on_epoch(number: int, epoch: Epoch) -> None:
        done = (number + epoch.number / config.epochs) / config.trials
        text = f"trial {number + 1} of {config.trials}, epoch {epoch.number}, NDCG@10 {epoch.validation_ndcg:.4f}"
        at.progress(done, text)

    return search(
        lessons,
        config,
        SearchPlace(scratch / "study.log", scratch / "weights"),
        warm=Student.load(at.store.open("distil", parent)) if parent else None,
        on_trial=lambda trial: _record(at, trial),
        on_epoch=on_epoch,
        enough=at.out_of_time,
    )


def _record(at: Step, trial: Trial) -> None:
    """One child run a trial, with its parameters and its curve."""
    run_id = at.tracking.start_child(at.night.run_id, f"trial {trial.number}", {"recsys.state": trial.state})
    at.tracking.log_params(
        run_id, {"width": str(trial.width), "distillation_weight": str(trial.weight), "k": str(trial.k)}
    )
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
