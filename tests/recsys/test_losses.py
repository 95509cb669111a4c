"""The loss of the student: against a naive computation, at the identity, and by its gradient."""

import math

import numpy as np
import pytest
import torch

from recsys.losses import Distillation, Targets, exact, sampled
from recsys.soft_labels import Labelling, SoftLabels
from recsys.soft_losses import SoftTargets, topk_tail
from recsys.training import Batch, HardLabels

P, D, N, V, K = 6, 4, 20, 15, 3


@pytest.fixture
def made() -> tuple[torch.Tensor, torch.Tensor, Targets, torch.Tensor]:
    """States, table and targets in double precision, and the teacher's full log-probabilities (P, V)."""
    torch.manual_seed(0)
    states, table = torch.randn(P, D, dtype=torch.double), torch.randn(N + 1, D, dtype=torch.double)
    teacher = torch.log_softmax(2 * torch.randn(P, V, dtype=torch.double), 1)
    logp, at = teacher.topk(K, 1)
    p = logp.exp()
    importance = torch.tensor([0.3, 0.1, 0.2, 0.2, 0.1, 0.1], dtype=torch.double)
    clicks = torch.tensor([1, 20, 7, int(at[3, 0]) + 1, 15, 16])  # 20 and 16 the teacher does not know
    return states, table, Targets(clicks, importance, SoftTargets(at + 1, p, 1 - p.sum(1), V), 0.7), teacher


def naive(states: torch.Tensor, table: torch.Tensor, targets: Targets) -> torch.Tensor:
    """The definition, one position after another."""
    soft, a, total = targets.soft, targets.weight, torch.zeros((), dtype=states.dtype)
    for i in range(len(states)):
        scores = table[1:] @ states[i]
        click = -torch.log_softmax(scores, 0)[targets.clicks[i] - 1]
        q = torch.softmax(scores[: soft.catalog], 0)[soft.items[i] - 1]
        kl = (soft.p[i] * (soft.p[i] / q).log()).sum() + soft.rest[i] * (soft.rest[i] / (1 - q.sum())).log()
        total = total + targets.importance[i] * ((1 - a) * click + a * kl)
    return total


def with_gradients(loss, states, table, *rest):
    states, table = states.clone().requires_grad_(), table.clone().requires_grad_()
    value = loss(states, table, *rest)
    (3 * value).backward()
    return value.detach(), states.grad / 3, table.grad / 3


@pytest.mark.parametrize(("chunk_bytes", "safe"), [(8 * N * 2, 60.0), (1 << 20, 60.0), (8 * N * 2, 0.0)])
def test_exact_is_the_naive_computation_and_so_are_its_gradients(made, chunk_bytes, safe, monkeypatch):
    states, table, targets, _ = made
    monkeypatch.setattr("recsys.softmax.SAFE", safe)  # scores beyond it are moved first
    monkeypatch.setattr("recsys.losses._CHUNK_BYTES", {"cpu": chunk_bytes})  # two positions at once, and all
    for got, wanted in zip(
        with_gradients(exact, states, table, targets), with_gradients(naive, states, table, targets), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_the_tail_bucket_by_hand():
    soft = SoftTargets(torch.tensor([[1]]), torch.tensor([[0.5]]), torch.tensor([0.5]), 3)
    loss = topk_tail(torch.tensor([[0.25]]).log(), torch.tensor([[0.75]]).log(), soft)
    assert loss.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_at_the_teacher_the_loss_is_zero_and_has_no_gradient(made):
    _, _, targets, teacher = made
    # One state a position and a table whose columns hold the teacher's logits: student == teacher.
    states = torch.eye(P, dtype=torch.double)
    table = torch.cat([torch.zeros(1, P, dtype=torch.double), teacher.T + 5])
    only_soft = Targets(targets.clicks.clamp_max(V), targets.importance, targets.soft, 1.0)
    loss, to_states, to_table = with_gradients(exact, states, table, only_soft)
    assert abs(loss.item()) < 1e-12
    assert to_states.abs().max() < 1e-12
    assert to_table.abs().max() < 1e-12


def test_a_false_favourite_outside_the_top_k_is_pushed_down_and_a_listed_item_up():
    soft = SoftTargets(torch.tensor([[1, 2]]), torch.tensor([[0.6, 0.3]]), torch.tensor([0.1]), 4)
    targets = Targets(torch.tensor([1]), torch.tensor([1.0]), soft, 1.0)
    # Scores 0, 0, 5, 0: item 3 is a favourite of the student alone.
    table = torch.tensor([[0.0], [0.0], [0.0], [5.0], [0.0]])
    _, _, to_table = with_gradients(exact, torch.ones(1, 1), table, targets)
    assert to_table[3, 0] > 0
    assert to_table[1, 0] < 0
    assert to_table[2, 0] < 0


def test_items_the_teacher_does_not_know_take_no_part_in_the_soft_term(made):
    states, table, targets, _ = made
    only_soft = Targets(targets.clicks, targets.importance, targets.soft, 1.0)
    value, _, to_table = with_gradients(exact, states, table, only_soft)
    assert to_table[V + 1 :].abs().max() == 0
    moved = table.clone()
    moved[V + 1 :] += 3
    torch.testing.assert_close(exact(states, moved, only_soft), value)


def test_a_student_without_any_mass_outside_the_top_k_has_a_finite_loss_and_gradient():
    soft = SoftTargets(torch.tensor([[1]]), torch.tensor([[0.5]]), torch.tensor([0.5]), 3)
    targets = Targets(torch.tensor([2]), torch.tensor([1.0]), soft, 0.9)
    table = torch.tensor([[0.0], [500.0], [-500.0], [-500.0]])
    for loss in (exact, lambda *a: sampled(*a, 3)):
        value, to_states, to_table = with_gradients(loss, torch.ones(1, 1), table, targets)
        assert math.isfinite(value)
        assert torch.isfinite(to_states).all()
        assert torch.isfinite(to_table).all()


def test_half_precision_labels_never_sum_to_more_than_one():
    logp = torch.tensor([[0.5, 0.3, 0.202], [0.4, 0.2, 0.1]]).log().half()
    soft = SoftTargets.of(torch.tensor([[1, 2, 3], [1, 2, 3]], dtype=torch.int32), logp, 5)
    assert soft.rest[0] == 0
    torch.testing.assert_close(soft.p.sum(1) + soft.rest, torch.ones(2))
    assert soft.rest[1] == pytest.approx(0.3, abs=1e-3)
    whole = SoftTargets.of(torch.tensor([[1, 2, 3]], dtype=torch.int32), logp[1:], 3)
    assert whole.rest.abs().max() < 1e-6  # all three items are listed


def test_sampling_every_item_is_the_exact_loss(made):
    states, table, targets, _ = made
    for got, wanted in zip(
        with_gradients(sampled, states, table, targets, N), with_gradients(exact, states, table, targets), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_sampled_normalisers_are_right_on_average(made):
    states, table, targets, _ = made
    torch.manual_seed(1)
    table = table * 0.3  # mild scores: the bias of the logarithm of an estimate is then small
    mean = torch.stack([sampled(states, table, targets, N // 2) for _ in range(600)]).mean()
    assert mean.item() == pytest.approx(exact(states, table, targets).item(), rel=0.02)


def labels_of(targets: Targets) -> SoftLabels:
    """Soft labels whose row of flat position 10 + i is position i of the targets."""
    rows = np.full(10 + P, -1, np.int32)
    rows[10:] = np.arange(P)
    return SoftLabels(
        Labelling("t", "c", V, K),
        targets.soft.items.numpy().astype(np.int32),
        targets.soft.p.log().numpy().astype(np.float16),
        np.zeros(P, np.float32),
        rows,
    )


def batch_of(targets: Targets, order: list[int]) -> Batch:
    nothing = torch.zeros(0)
    return Batch(
        nothing, nothing, targets.clicks[order], 5 * targets.importance[order].float(), torch.tensor(order) + 10
    )


def test_distillation_joins_labels_by_position_and_weighs_by_event(made):
    states, table, targets, _ = made
    objective, order = Distillation(labels_of(targets), 0.7, K), [4, 2, 0, 1, 5, 3]
    got = objective(states[order].float(), table.float(), batch_of(targets, order))
    assert got.item() == pytest.approx(naive(states, table, targets).item(), rel=2e-3)


def test_fewer_items_leave_more_to_the_rest(made):
    states, table, targets, _ = made
    got = Distillation(labels_of(targets), 0.7, 1)(states.float(), table.float(), batch_of(targets, list(range(P))))
    soft = SoftTargets(targets.soft.items[:, :1], targets.soft.p[:, :1], 1 - targets.soft.p[:, 0], V)
    one = Targets(targets.clicks, targets.importance, soft, 0.7)
    assert got.item() == pytest.approx(naive(states, table, one).item(), rel=2e-3)


def test_at_weight_zero_it_is_the_cross_entropy_of_the_click(made):
    states, table, targets, _ = made
    batch = batch_of(targets, list(range(P)))
    got = with_gradients(Distillation(labels_of(targets), 0.0, K), states.float(), table.float(), batch)
    wanted = with_gradients(HardLabels(), states.float(), table.float(), batch)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_above_the_full_size_the_sampled_loss_is_used(made):
    states, table, targets, _ = made
    batch = batch_of(targets, list(range(P)))
    full = Distillation(labels_of(targets), 0.7, K)(states.float(), table.float(), batch)
    all_drawn = Distillation(labels_of(targets), 0.7, K, full_up_to=N - 1, negatives=N)
    few_drawn = Distillation(labels_of(targets), 0.7, K, full_up_to=N - 1, negatives=2)
    torch.testing.assert_close(all_drawn(states.float(), table.float(), batch), full)
    assert few_drawn(states.float(), table.float(), batch).item() != pytest.approx(full.item(), rel=1e-6)


def test_under_half_precision_autocast_the_loss_is_summed_in_single(made):
    states, table, targets, _ = made
    objective, batch = Distillation(labels_of(targets), 0.7, K), batch_of(targets, list(range(P)))
    with torch.autocast("cpu", torch.bfloat16):
        got = objective(states.bfloat16(), table.float(), batch)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, objective(states.bfloat16().float(), table.float(), batch))


def test_a_position_without_a_label_is_refused(made):
    _, _, targets, _ = made
    with pytest.raises(AssertionError, match="no soft label"):
        labels_of(targets).at(torch.tensor([9]), K)
