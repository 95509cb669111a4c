"""The loss over the teacher's whole distribution: against its definition in double precision, and where it is nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.config import NightConfig
from recsys.errors import ConfigError
from recsys.losses import HIDDEN, Distillation, Targets, exact, sampled
from recsys.neighbourhood import FLOOR, Neighbourhood, Opinion
from recsys.resolve import resolve
from recsys.soft_labels import KeptStates, Labelling, SoftLabels
from recsys.soft_losses import SoftTargets
from recsys.teacher_scores import TeacherHead
from recsys.training import Batch

N, V, K, D, WIDE, WEIGHT = 20, 15, 3, 4, 6, 0.7  # the teacher does not know 5 items, and is wider than the student
ITEMS = torch.tensor([[3, 18, 3, 7], [1, 2, 15, 20], [9, 9, 4, 0]])  # 18 and 20 it does not know; 0 is padding
OWNED = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
ROWS, ENDS = torch.nonzero(OWNED).unbind(1)
P = len(ROWS)
CLICKS = torch.tensor([18, 3, 7, 1, 15, 20, 4, 9, 4, 2])
IMPORTANCE = torch.linspace(1, 3, P, dtype=torch.double)


def head_of(blended: bool) -> TeacherHead:
    rng = np.random.default_rng(5)
    near = np.where(rng.random((V, V)) < 0.3, rng.random((V, V)), 0).astype(np.float32)
    table = torch.from_numpy(rng.standard_normal((V + 1, WIDE)))
    return TeacherHead(table, Opinion(Neighbourhood(csr_array(near), newest=3), 0.4) if blended else None)


def teacher_logits(head: TeacherHead, states: Tensor) -> Tensor:
    """(P, V) by the definition, one position and item after another."""
    rows = []
    for row, end, state in zip(ROWS.tolist(), ENDS.tolist(), states, strict=True):
        z = head.table[1:] @ state
        if head.opinion:
            newest = {int(item) for item in ITEMS[row, max(0, end - 2) : end + 1] if 0 < item <= V}
            near, w = head.opinion.neighbourhood.near.toarray(), head.opinion.weight
            said = torch.tensor(np.log1p(sum((near[item - 1] for item in newest), np.zeros(V)) / FLOOR))
            z = (1 - w) * z + w * said
        rows.append(z)
    return torch.stack(rows)


def labels_of(head: TeacherHead) -> SoftLabels:
    """As they are written: states in half precision, the best K of what they make."""
    torch.manual_seed(1)
    kept = torch.randn(P, WIDE).half()
    logp, at = torch.log_softmax(teacher_logits(head, kept.double()), 1).topk(K, 1)
    return SoftLabels(
        Labelling("t", "c", V, K, states=True),
        (at + 1).numpy().astype(np.int32),
        logp.numpy().astype(np.float16),
        torch.logsumexp(teacher_logits(head, kept.double()), 1).float().numpy(),
        np.arange(P, dtype=np.int32),
        KeptStates(kept.numpy(), head),
    )


def batch_of() -> Batch:
    return Batch(ITEMS, OWNED, CLICKS, IMPORTANCE.float(), torch.arange(P))


def targets_of(labels: SoftLabels, T: float, weight: float = WEIGHT) -> Targets:
    """What the objective aims at, in double precision."""
    hidden = labels.hidden_at(batch_of(), K, T)
    assert labels.states is not None
    logits = teacher_logits(labels.states.head, hidden.states.double())
    items = torch.from_numpy(labels.items).long()
    soft = SoftTargets(items, torch.log_softmax(logits, 1).gather(1, items - 1).exp(), torch.zeros(P), V)
    listed = logits.gather(1, items - 1)  # in full, where labels have half precision
    return Targets(
        CLICKS, IMPORTANCE / IMPORTANCE.sum(), soft, weight,
        hidden=replace(hidden, states=hidden.states.double(), listed=listed),
    )  # fmt: skip


def naive(states: Tensor, table: Tensor, targets: Targets) -> Tensor:
    """(1 - a) CE + a T^2 KL, one position after another."""
    assert targets.hidden is not None
    T, a, total = targets.hidden.temperature, targets.weight, torch.zeros((), dtype=torch.double)
    theirs = teacher_logits(targets.hidden.head, targets.hidden.states)
    for i in range(P):
        z = table[1:] @ states[i]
        p, q = torch.softmax(theirs[i] / T, 0), torch.softmax(z[:V] / T, 0)
        kl = sum(p[j] * (p[j] / q[j]).log() for j in range(V))
        click = -torch.log_softmax(z, 0)[CLICKS[i] - 1]
        total = total + targets.importance[i] * ((1 - a) * click + a * T**2 * kl)
    return total


def student() -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    return torch.randn(P, D, dtype=torch.double), torch.randn(N + 1, D, dtype=torch.double)


def with_gradients(loss, states: Tensor, table: Tensor, *rest) -> tuple[Tensor, Tensor, Tensor]:
    states, table = states.clone().requires_grad_(), table.clone().requires_grad_()
    value = loss(states, table, *rest)
    (3 * value).backward()
    return value.detach(), states.grad / 3, table.grad / 3


@pytest.mark.parametrize("chunk_bytes", [8 * N * 2, 1 << 20])
@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("T", [1.0, 2.0])
def test_value_and_gradient_are_those_of_the_definition_over_all_items_and_over_a_sample_of_all(
    T, blended, chunk_bytes, monkeypatch
):
    monkeypatch.setattr("recsys.losses._CHUNK_BYTES", {"cpu": chunk_bytes})  # two positions at once, and all
    states, table = student()
    targets = targets_of(labels_of(head_of(blended)), T)
    wanted = with_gradients(naive, states, table, targets)
    for got in (with_gradients(exact, states, table, targets), with_gradients(sampled, states, table, targets, N)):
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)  # evidence is logged in single precision


@pytest.mark.parametrize("T", [1.0, 2.0])
def test_the_gradient_is_that_of_finite_differences(T):
    states, table = (each.requires_grad_() for each in student())
    targets = targets_of(labels_of(head_of(True)), T)
    assert torch.autograd.gradcheck(lambda s, t: exact(s, t, targets), (states, table), fast_mode=True)


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("T", [1.0, 2.5])
def test_at_the_teacher_it_is_zero_without_gradient_in_every_sample(T, blended):
    targets = targets_of(labels_of(head_of(blended)), T, weight=1.0)
    targets = replace(targets, clicks=CLICKS.clamp_max(V))
    # One state a position and a table that gives the teacher's own scores: student == teacher.
    states = torch.eye(P, dtype=torch.double)
    theirs = teacher_logits(targets.hidden.head, targets.hidden.states) + 2
    table = torch.cat([torch.zeros(1, P, dtype=torch.double), theirs.T])
    torch.manual_seed(0)
    for loss in (exact, *(lambda *a, n=n: sampled(*a, n) for n in (V, 5, 2))):
        value, *gradients = with_gradients(loss, states, table, targets)
        assert abs(value) < 1e-6
        assert all(each.abs().max() < 1e-6 for each in gradients)


def test_items_the_teacher_does_not_know_take_no_part():
    states, table = student()
    targets = targets_of(labels_of(head_of(True)), 2.0, weight=1.0)
    moved = table.clone()
    moved[V + 1 :] += 3
    for loss in (exact, lambda *a: sampled(*a, N)):
        value, _, to_table = with_gradients(loss, states, table, targets)
        assert to_table[V + 1 :].abs().max() == 0
        torch.testing.assert_close(loss(states, moved, targets), value)


def test_a_sample_agrees_on_average_in_value_and_gradient_and_the_larger_the_better():
    states, table = student()
    table = table * 0.3  # mild scores: the bias of a ratio of estimates is then small
    targets = targets_of(labels_of(head_of(True)), 2.0, weight=1.0)
    wanted, *theirs = with_gradients(exact, states, table, targets)
    torch.manual_seed(1)
    with torch.no_grad():
        few = torch.stack([sampled(states, table, targets, 3) for _ in range(120)])
    several = [with_gradients(sampled, states, table, targets, 15) for _ in range(120)]
    value, *gradients = (torch.stack(each).mean(0) for each in zip(*several, strict=True))
    assert few.min() > 0
    assert abs(value / wanted - 1) < 0.03
    assert abs(value / wanted - 1) < abs(few.mean() / wanted - 1)
    for one, other in zip(gradients, theirs, strict=True):
        assert (one - other).abs().max() < 0.1 * other.abs().max()


@pytest.mark.parametrize("how", [{}, {"full_up_to": N - 1, "negatives": N}])
@pytest.mark.parametrize("blended", [False, True])
def test_the_objective_makes_the_teachers_scores_of_what_the_labels_keep_and_the_batch_reads(blended, how):
    states, table = student()
    labels = labels_of(head_of(blended))
    got = Distillation(labels, WEIGHT, K, HIDDEN, temperature=2.0, **how)(states.float(), table.float(), batch_of())
    assert float(got) == pytest.approx(float(naive(states, table, targets_of(labels, 2.0))), rel=2e-3)


def test_it_is_finite_far_from_the_teacher():
    states, table = student()
    targets = targets_of(labels_of(head_of(True)), 1.0)
    for loss in (exact, lambda *a: sampled(*a, N), lambda *a: sampled(*a, 2)):
        for each in with_gradients(loss, states, 1e3 * table, targets):
            assert torch.isfinite(each).all()


def test_without_weight_it_is_the_cross_entropy_of_the_click_and_draws_nothing():
    states, table = (each.float() for each in student())
    objective, before = Distillation(labels_of(head_of(False)), 0.0, K, HIDDEN, temperature=3.0), torch.get_rng_state()
    got = objective(states, table, batch_of())
    assert torch.equal(torch.get_rng_state(), before)
    losses = torch.nn.functional.cross_entropy(states @ table[1:].T, CLICKS - 1, reduction="none")
    assert float(got) == pytest.approx(float((losses * IMPORTANCE).sum() / IMPORTANCE.sum()), rel=1e-5)


def test_what_the_labels_cannot_give_is_refused_in_a_sentence():
    labels = labels_of(head_of(False))
    with pytest.raises(ConfigError, match=r"needs the teacher's states.*Set labels.states to true\."):
        Distillation(replace(labels, states=None), WEIGHT, K, HIDDEN)
    Distillation(replace(labels, states=None), 0.0, 0, HIDDEN)  # the student without distillation needs none
    with pytest.raises(ConfigError, match="topk_tail knows no temperature but 1, 2 was asked for"):
        Distillation(labels, WEIGHT, K, temperature=2.0)


def test_the_loss_without_the_states_is_refused_when_the_configuration_is_resolved():
    with pytest.raises(ConfigError, match=r"labels.states is false \(search.loss\)\. Set labels.states to true"):
        resolve("quick", ["search.loss=hidden"])
    config = resolve("quick", ["search.loss=hidden", "labels.states=true"])
    assert (config.search.loss, config.labels.states) == (HIDDEN, True)
    with pytest.raises(ConfigError):
        NightConfig(search=config.search)
