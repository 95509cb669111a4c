"""Distillation on a shop whose law is known: what the labels say must help because it is true, of the position it is of."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.decoder import DecoderShape
from recsys.histories import Cases, Histories
from recsys.losses import Distillation
from recsys.sequence_model import Scorer, ndcg_of, ranking_validator
from recsys.soft_labels import Labelling, SoftLabels
from recsys.soft_losses import SOFT_LOSSES
from recsys.student import Student
from recsys.training import Schedule, fit

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS, USERS, EVENTS, K = 60, 40, 9, 10
FOLLOWS = 0.45 * 0.5 ** np.arange(K)  # how likely an item is followed by the next, the one after, ...; else by any


def law() -> np.ndarray:
    """(N, N): the true probabilities of what follows an item."""
    p = np.full((ITEMS, ITEMS), (1 - FOLLOWS.sum()) / ITEMS)
    for ahead, share in enumerate(FOLLOWS, start=1):
        p[np.arange(ITEMS), (np.arange(ITEMS) + ahead) % ITEMS] += share
    return p


def shop(seed: int, users: int) -> np.ndarray:
    """(users, EVENTS) codes that follow the law."""
    rng, p = np.random.default_rng(seed), law()
    walks = rng.integers(0, ITEMS, (users, EVENTS))
    for step in range(1, EVENTS):
        walks[:, step] = [rng.choice(ITEMS, p=p[item]) for item in walks[:, step - 1]]
    return (walks + 1).astype(np.int32)


def histories_of(rows: np.ndarray) -> Histories:
    """All but the last two events are trained on."""
    users = len(rows)
    return Histories(
        tokens=np.array([f"{user:032d}".encode() for user in range(users)]),
        offsets=np.arange(users + 1) * EVENTS,
        items=rows.ravel(),
        times=np.arange(rows.size),
        weights=np.ones(rows.size, np.float32),
        train_end=np.full(users, EVENTS - 2, np.int32),
        valid_end=np.full(users, EVENTS - 1, np.int32),
    )


def cases_of(rows: np.ndarray) -> Cases:
    """What comes last, after all before it."""
    return Cases(np.arange(len(rows)), [row[:-1] for row in rows], [row[-1:] for row in rows], False)


def true_labels(histories: Histories) -> SoftLabels:
    """At each position the true law's K best, by its present item."""
    p = law()[histories.items - 1]
    best = np.argsort(-p, axis=1, kind="stable")[:, :K]
    logp = np.log(np.take_along_axis(p, best, 1)).astype(np.float16)
    at = np.arange(len(p), dtype=np.int32)
    return SoftLabels(
        Labelling("law", "c", ITEMS, K), best.astype(np.int32) + 1, logp, np.zeros(len(p), np.float32), at
    )


def student_of(histories: Histories, objective: Distillation, seed: int) -> Student:
    """Trained for the same steps, its best epoch chosen on users of its own."""
    student = Student.untrained(DecoderShape.of(ITEMS, 16, 1, EVENTS), 0.1, seed)
    validate = ranking_validator(student, cases_of(shop(1_000, 200)))
    fit(student, histories, EVENTS, Schedule(6, 1e-2, seed, 64), objective, validate)
    return student


def quality(student: Student, rows: np.ndarray) -> float:
    return float(ndcg_of(Scorer(student, EVENTS, "tested"), cases_of(rows)).mean())


def test_true_labels_help_and_the_same_labels_at_other_positions_do_not():
    test, figures = shop(2_000, 400), []
    for seed in range(2):
        histories = histories_of(shop(seed, USERS))
        labels = true_labels(histories)
        permuted = replace(labels, rows=np.random.default_rng(seed).permutation(labels.rows))
        objectives = (Distillation(labels, 0.0, 0), Distillation(labels, 0.9, K), Distillation(permuted, 0.9, K))
        figures.append([quality(student_of(histories, objective, seed), test) for objective in objectives])
    for alone, true, wrong in figures:
        assert true > 1.2 * alone
        assert wrong < 0.8 * alone


@pytest.mark.parametrize("loss", list(SOFT_LOSSES))
def test_every_loss_learns_more_from_true_labels_than_from_permuted_ones_and_reads_the_order_of_events(loss):
    histories, test = histories_of(shop(0, USERS)), shop(2_000, 400)
    labels = true_labels(histories)
    permuted = replace(labels, rows=np.random.default_rng(0).permutation(labels.rows))
    true, wrong = (student_of(histories, Distillation(each, 0.9, K, loss), 0) for each in (labels, permuted))
    rng = np.random.default_rng(3)
    disordered = np.array([[*rng.permutation(row[:-1]), row[-1]] for row in test])
    assert quality(true, test) > 1.3 * quality(wrong, test)
    assert quality(true, disordered) < 0.8 * quality(true, test)
