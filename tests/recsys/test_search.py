"""The search: which trials it runs, what a kill leaves behind, and what it gives back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from recsys.config import LabelsConfig, SearchConfig
from recsys.decoder import DecoderShape
from recsys.errors import ConfigError, TrainingError
from recsys.histories import Cases, Histories
from recsys.search import Search, SearchPlace, search
from recsys.sequence_model import ranking_validator
from recsys.soft_labels import Labelling, Positions, SoftLabels, write_segment
from recsys.student import WEIGHTS, Student, grow
from recsys.teacher_scores import TeacherHead
from recsys.training import Epoch, HardLabels, Schedule, fit
from recsys.trial import Lessons, Parent

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS, USERS, EVENTS, LENGTH = 24, 60, 14, 8
CONFIG = SearchConfig(trials=4, widths=(16, 8), epochs=3, learning_rate=1e-2, dropouts=(0.1,), seed=3)


def shop() -> tuple[Histories, Cases]:
    """Users who mostly step from an item to the one after it. The last event of each is to be predicted."""
    rng = np.random.default_rng(0)
    steps = np.where(rng.random((USERS, EVENTS)) < 0.8, 1, rng.integers(1, ITEMS, (USERS, EVENTS)))
    items = (np.cumsum(steps, 1) + rng.integers(0, ITEMS, (USERS, 1))) % ITEMS + 1
    histories = Histories(
        tokens=np.array([f"{u:032d}".encode() for u in range(USERS)]),
        offsets=np.arange(USERS + 1) * EVENTS,
        items=items.astype(np.int32).ravel(),
        times=np.arange(USERS * EVENTS),
        weights=np.ones(USERS * EVENTS, np.float32),
        train_end=np.full(USERS, EVENTS - 1, np.int32),
        valid_end=np.full(USERS, EVENTS, np.int32),
    )
    known = [row[:-1].astype(np.int32) for row in items]
    return histories, Cases(np.arange(USERS), known, [row[-1:].astype(np.int32) for row in items], False)


def lessons_in(folder: Path, items: int = ITEMS, *, states: bool = False) -> Lessons:
    """Lessons whose labels, by a small trained teacher that knows ITEMS items, are kept in `folder`."""
    histories, validation = shop()
    teacher = Student.untrained(DecoderShape.of(ITEMS, 16, 1, LENGTH), 0.1, seed=0)
    fit(teacher, histories, LENGTH, Schedule(3, 1e-2, 0, 128), HardLabels(), ranking_validator(teacher, validation))
    config = LabelsConfig(top_k=20, states=states)
    labelling = Labelling.of("teacher", ITEMS, [str(i) for i in range(ITEMS)], config)
    positions = Positions.of(histories, LENGTH)
    write_segment(teacher, labelling, positions, [], folder)
    labels = SoftLabels.open([folder], positions, labelling, TeacherHead.of(teacher) if states else None)
    return Lessons(histories, items, LENGTH, labels, validation)


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    return lessons_in(tmp_path_factory.mktemp("labels"))


def place_in(folder: Path) -> SearchPlace:
    return SearchPlace(folder / "study" / "journal.log", folder / "weights")


@pytest.fixture(scope="module")
def undisturbed(lessons: Lessons, tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, SearchPlace]:
    place = place_in(tmp_path_factory.mktemp("search"))
    return search(lessons, CONFIG, place), place


def states(place: SearchPlace) -> list[TrialState]:
    storage = JournalStorage(JournalFileBackend(str(place.storage)))
    return [trial.state for trial in optuna.load_study(study_name="student", storage=storage).trials]


def told(found: Search) -> list[tuple]:
    """Everything of the trials that is no measured time."""
    return [
        (
            t.number,
            t.width,
            t.dropout,
            t.weight,
            t.k,
            t.state,
            t.validation_ndcg,
            [(e.loss, e.validation_ndcg) for e in t.epochs],
        )
        for t in found.trials
    ]


def bytes_of(student: Student, folder: Path) -> bytes:
    student.save(folder)
    return (folder / WEIGHTS).read_bytes()


def test_it_runs_as_many_trials_as_asked_the_first_undistilled_the_second_at_nine_tenths(undisturbed):
    found, place = undisturbed
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3]
    first, second, *rest = found.trials
    assert found.undistilled == first
    assert (first.width, first.weight, first.k, first.state, len(first.epochs)) == (16, 0.0, 0, "complete", 3)
    assert (second.width, second.weight, second.k, second.state) == (16, 0.9, 20, "complete")
    assert all(trial.width in (16, 8) and 0.7 <= trial.weight <= 1 and trial.k in (10, 20) for trial in rest)
    assert len({trial.weight for trial in rest}) == 2
    assert len(states(place)) == 4


def test_the_best_is_the_best_complete_trial_and_its_student_has_that_score(undisturbed, lessons):
    found, _ = undisturbed
    complete = [trial.validation_ndcg for trial in found.trials if trial.state == "complete"]
    assert found.best.validation_ndcg == max(complete)
    assert found.best.validation_ndcg == max(epoch.validation_ndcg for epoch in found.best.epochs)
    assert ranking_validator(found.student, lessons.validation)() == found.best.validation_ndcg
    assert found.student.shape.width == found.best.width
    assert found.student.dropout.share == found.best.dropout == 0.1


def test_a_finished_search_is_read_back_and_nothing_is_trained(undisturbed, lessons, tmp_path):
    found, place = undisturbed
    heard, trained = [], []
    again = search(lessons, CONFIG, place, on_trial=heard.append, on_epoch=lambda number, epoch: trained.append(number))
    assert again.trials == found.trials == tuple(heard)
    assert trained == []
    assert bytes_of(again.student, tmp_path / "a") == bytes_of(found.student, tmp_path / "b")


def test_after_a_kill_exactly_the_missing_trials_are_run_and_the_student_is_the_same(undisturbed, lessons, tmp_path):
    found, _ = undisturbed
    place = place_in(tmp_path)
    running = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert running.stdout.readline() == "inside trial 1\n"  # after its second epoch
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    running.stdout.close()
    assert states(place) == [TrialState.COMPLETE], "a trial is in the journal once it has ended"
    heard = []
    resumed = search(lessons, CONFIG, place, on_trial=heard.append)
    finished = [state for state in states(place) if state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == CONFIG.trials == len(heard) == len(states(place))
    assert told(resumed) == told(found)
    assert bytes_of(resumed.student, tmp_path / "a") == bytes_of(found.student, tmp_path / "b")


def test_workers_side_by_side_find_the_same_student(undisturbed, lessons, tmp_path):
    found, _ = undisturbed
    place, heard = place_in(tmp_path), []
    side_by_side = search(lessons, CONFIG, place, on_epoch=lambda number, epoch: heard.append(number), workers=2)
    assert told(side_by_side) == told(found)
    assert bytes_of(side_by_side.student, tmp_path / "a") == bytes_of(found.student, tmp_path / "b")
    assert set(heard) == {0, 1, 2, 3}
    assert not list(place.storage.parent.glob("lessons*")), "what was handed over is cleared away"


def test_what_is_proposed_knows_the_rounds_before_and_nothing_of_its_own(lessons, tmp_path):
    config = CONFIG.model_copy(update={"trials": 8, "epochs": 1})
    whole = search(lessons, config, place_in(tmp_path / "whole"))
    place, ended = place_in(tmp_path / "killed"), []

    def stop(number: int, epoch: Epoch) -> None:
        if number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(lessons, config, place, on_trial=ended.append, on_epoch=stop)
    assert [trial.number for trial in ended] == [0, 1, 2, 3, 4]
    assert told(search(lessons, config, place)) == told(whole)
    assert len({(trial.weight, trial.width, trial.k) for trial in whole.trials}) == 8


def test_without_time_it_ends_with_both_kinds_and_with_more_time_goes_on_to_the_same_student(
    undisturbed, lessons, tmp_path
):
    found, _ = undisturbed
    place = place_in(tmp_path)
    short = search(lessons, CONFIG, place, enough=lambda: True)
    assert told(short) == told(found)[:2], "the undistilled one and a distilled one there are in any case"
    asked = iter([False, False, True])
    search(lessons, CONFIG, place, enough=lambda: next(asked))
    assert states(place)[2:] == [], "it ended in the middle of a trial"
    resumed = search(lessons, CONFIG, place, enough=lambda: False)
    assert told(resumed) == told(found)
    assert bytes_of(resumed.student, tmp_path / "a") == bytes_of(found.student, tmp_path / "b")


def test_half_a_line_at_the_end_of_the_journal_is_cut(lessons, tmp_path):
    config, place = CONFIG.model_copy(update={"trials": 2, "epochs": 1}), place_in(tmp_path)

    def stop(number: int, epoch: Epoch) -> None:
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(lessons, config, place, on_epoch=stop)
    with place.storage.open("ab") as journal:
        journal.write(b'{"op_code": 6, "wor')
    found = search(lessons, config, place)
    assert [trial.weight for trial in found.trials] == [0.0, 0.9]


def test_each_dropout_is_tried_with_distilling_and_without_before_any_is_proposed(lessons, tmp_path):
    config = CONFIG.model_copy(update={"trials": 8, "dropouts": (0.5, 0.0), "epochs": 2})
    found = search(lessons, config, place_in(tmp_path))
    pairs = [(trial.width, trial.dropout, trial.weight, trial.k) for trial in found.trials[:4]]
    assert pairs == [(16, 0.5, 0.0, 0), (16, 0.5, 0.9, 20), (16, 0.0, 0.0, 0), (16, 0.0, 0.9, 20)]
    assert all(trial.weight >= 0.7 and trial.dropout in (0.5, 0.0) for trial in found.trials[4:])
    assert {trial.dropout for trial in found.trials[4:]} == {0.5, 0.0}, "it is a dimension of what is proposed"
    alone = [trial for trial in found.trials if trial.weight == 0]
    assert [trial.state for trial in alone] == ["complete", "complete"]
    assert found.undistilled == max(alone, key=lambda trial: trial.validation_ndcg)
    assert ranking_validator(found.control, lessons.validation)() == found.undistilled.validation_ndcg
    assert found.control.dropout.share == found.undistilled.dropout
    assert len({trial.epochs[-1].loss for trial in alone}) == 2


def test_of_several_undistilled_students_the_best_is_the_control(lessons, tmp_path, monkeypatch):
    levels = iter([0.2, 0.5, 0.4, 0.3])
    monkeypatch.setattr(
        "recsys.trial.ranking_validator", lambda student, cases, it=levels: (lambda v: lambda: v)(next(it))
    )
    config = CONFIG.model_copy(update={"dropouts": (0.1, 0.3)})
    found = search(lessons, config, place_in(tmp_path))
    assert (found.best.number, found.undistilled.number, found.control.dropout.share) == (1, 2, 0.3)


def test_a_hopeless_trial_is_pruned_counts_as_finished_and_can_never_be_best(lessons, tmp_path, monkeypatch):
    asked = []

    def worse_and_worse(student, cases):
        """Trials 0 and 1 are good, the later ones bad from their first epoch on."""
        asked.append(student)
        level = 0.5 if len(asked) <= 2 else 0.1
        return lambda: level

    monkeypatch.setattr("recsys.trial.ranking_validator", worse_and_worse)
    found = search(lessons, CONFIG, place_in(tmp_path))
    assert [trial.state for trial in found.trials] == ["complete", "complete", "pruned", "pruned"]
    assert [len(trial.epochs) for trial in found.trials] == [3, 3, 2, 2]
    assert found.best.number == 0
    assert not (tmp_path / "weights" / "trial-002").exists()


def test_the_undistilled_trial_is_never_pruned(lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: True)
    found = search(lessons, CONFIG, place_in(tmp_path))
    assert [trial.state for trial in found.trials] == ["complete", "pruned", "pruned", "pruned"]
    assert found.best == found.undistilled


def test_a_trial_whose_loss_is_not_a_number_is_replaced(lessons, tmp_path, monkeypatch):
    runs = []

    def sometimes(student, histories, length, schedule, *rest, **named):
        runs.append(schedule.seed)
        if len(runs) == 2:
            raise TrainingError("the loss is nan at step 1 of epoch 1")
        return fit(student, histories, length, schedule, *rest, **named)

    monkeypatch.setattr("recsys.trial.fit", sometimes)
    place = place_in(tmp_path)
    found = search(lessons, CONFIG, place)
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3]
    assert states(place).count(TrialState.FAIL) == 1
    assert runs == [3, 3, 4, 3, 3]  # the replacement alone starts from another seed
    assert found.trials[1].weight == 0.9


def test_when_all_trials_fail_every_reason_is_told(lessons, tmp_path):
    endless = CONFIG.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError) as raised:
        search(lessons, endless, place_in(tmp_path))
    text = str(raised.value)
    assert "4 trials failed and only 0 of 4 finished" in text
    assert text.count("width 16, dropout 0.1, weight 0.00, k 0: the ") == 2
    assert text.count("width 16, dropout 0.1, weight 0.90, k 20: the ") == 2
    assert "Lower search.learning_rate" in text


def test_weights_that_are_no_numbers_after_an_epoch_fail_the_trial(lessons, tmp_path, monkeypatch):
    def spoils(student, histories, length, schedule, objective, validate, **named):
        with torch.no_grad():
            student.table.weight[1] = torch.nan
        validate()

    monkeypatch.setattr("recsys.trial.fit", spoils)
    with pytest.raises(TrainingError, match="the scores after an epoch are not numbers"):
        search(lessons, CONFIG, place_in(tmp_path))


@pytest.mark.parametrize("control_width", [8, 4, None])
def test_a_warm_start_goes_on_from_the_grown_parents_with_fewer_and_smaller_steps(
    lessons, tmp_path, monkeypatch, control_width
):
    parent, control = (
        width and Student.untrained(DecoderShape.of(ITEMS, width, 1, LENGTH), dropout, seed=seed)
        for width, dropout, seed in ((8, 0.25, 9), (control_width, 0.5, 10))
    )
    wider = Lessons(lessons.histories, ITEMS + 2, LENGTH, lessons.labels, lessons.validation)
    starts, schedules, dropouts = [], [], []

    def watched(student, histories, length, schedule, *rest, **named):
        starts.append(student.table.weight.detach().clone())
        schedules.append(schedule)
        dropouts.append(student.dropout.share)
        return fit(student, histories, length, schedule, *rest, **named)

    monkeypatch.setattr("recsys.trial.fit", watched)
    config = CONFIG.model_copy(update={"trials": 2, "epochs": 11})
    found = search(wider, config, place_in(tmp_path), warm=Parent(parent, control))
    assert [trial.width for trial in found.trials] == [8, 8]
    assert [trial.dropout for trial in found.trials] == dropouts == [0.5 if control_width == 8 else 0.25, 0.25]
    assert schedules[1].epochs * schedules[1].share == pytest.approx(11 / 4)
    assert schedules[1].learning_rate == pytest.approx(0.3 * config.learning_rate)
    assert torch.equal(starts[1], grow(parent, ITEMS + 2).table.weight)
    if control_width == 8:  # equal steps for the student that never saw a soft label
        assert schedules[0] == schedules[1]
        assert torch.equal(starts[0], grow(control, ITEMS + 2).table.weight)
    else:  # the parent was distilled: what had started from it would be no student without distillation
        assert (schedules[0].epochs, schedules[0].learning_rate) == (11, config.learning_rate)
        scratch = Student.untrained(DecoderShape.of(ITEMS + 2, 8, 1, LENGTH), 0.0, config.seed)
        assert torch.equal(starts[0], scratch.table.weight)
    assert found.student.shape.items == ITEMS + 2
    assert torch.equal(found.control.table.weight, Student.load(tmp_path / "weights" / "trial-000").table.weight)


def test_a_parent_that_reads_another_length_is_refused(lessons, tmp_path):
    parent = Student.untrained(DecoderShape.of(ITEMS, 8, 1, LENGTH + 2), 0.0, seed=9)
    with pytest.raises(ConfigError, match=r"reads 10 items, tonight's are to read 8 \(data.history_length\)"):
        search(lessons, CONFIG, place_in(tmp_path), warm=Parent(parent))


def test_the_loss_of_the_configuration_is_what_distilled_trials_learn_from(undisturbed, lessons, tmp_path):
    found, _ = undisturbed
    config = CONFIG.model_copy(update={"trials": 3, "loss": "hard_label"})
    other = search(lessons, config, place_in(tmp_path))
    assert told(other)[0] == told(found)[0], "the undistilled student knows no loss"
    assert [trial.k for trial in other.trials] == [0, 1, 1], "the first rank alone leaves no choice of K"
    ranks = [
        search(lessons, CONFIG.model_copy(update={"trials": 2, "loss": name}), place_in(tmp_path / name))
        for name in ("rrd", "sampled")
    ]
    ends = [each.trials[1].epochs[-1].loss for each in (found, other, *ranks)]
    assert len(set(ends)) == 4


def test_the_loss_that_sees_the_whole_distribution_is_tried_at_several_temperatures(undisturbed, lessons, tmp_path):
    config = CONFIG.model_copy(update={"loss": "hidden", "epochs": 1})
    found = search(lessons_in(tmp_path / "labels", states=True), config, place_in(tmp_path), workers=2)
    first, second, *rest = (trial.temperature for trial in found.trials)
    assert (first, second) == (1.0, 1.0)
    assert all(1 < temperature < 4 for temperature in rest)
    assert len(set(rest)) == 2
    assert {trial.temperature for trial in undisturbed[0].trials} == {1.0}, "other losses have no choice"
    with pytest.raises(ConfigError, match="the soft labels keep none"):
        search(lessons, config, place_in(tmp_path / "without"))


def test_labels_with_few_items_leave_no_choice_of_k(lessons, tmp_path):
    labels = lessons.labels
    few = SoftLabels(
        Labelling("teacher", labels.labelling.catalog, ITEMS, 5),
        labels.items[:, :5],
        labels.logp[:, :5],
        labels.lse,
        labels.rows,
    )
    config = CONFIG.model_copy(update={"trials": 3, "epochs": 1})
    found = search(Lessons(lessons.histories, ITEMS, LENGTH, few, lessons.validation), config, place_in(tmp_path))
    assert [trial.k for trial in found.trials] == [0, 5, 5]


def run_until_killed(folder: Path) -> None:
    """In a process of its own: tell when trial 1 has its second epoch, then wait to be killed."""

    def wait(number: int, epoch: Epoch) -> None:
        if (number, epoch.number) == (1, 2):
            print("inside trial 1", flush=True)
            signal.pause()

    torch.set_num_threads(1)
    search(lessons_in(folder / "labels"), CONFIG, place_in(folder), on_epoch=wait)


if __name__ == "__main__":
    run_until_killed(Path(sys.argv[1]))
