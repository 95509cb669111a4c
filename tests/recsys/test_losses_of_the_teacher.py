"""The five losses from the teacher: each against its definition, where it is least, and at the edges."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.config import SoftLossName
from recsys.losses import HIDDEN, Distillation, Targets, exact, sampled
from recsys.soft_labels import Labelling, SoftLabels
from recsys.soft_losses import DRAWS, SOFT_LOSSES, SoftTargets
from recsys.training import Batch

P, D, N, V, K = 6, 4, 20, 15, 3
LOSSES = list(SOFT_LOSSES)


def teacher() -> Tensor:
    """The teacher's full log-probabilities (P, V)."""
    torch.manual_seed(0)
    return torch.log_softmax(2 * torch.randn(P, V, dtype=torch.double), 1)


def stored(logp: Tensor, k: int) -> SoftTargets:
    """What labels keep of it."""
    p, at = logp.exp().topk(k, 1)
    return SoftTargets(at + 1, p, (1 - p.sum(1)).clamp_min(0), logp.shape[1])


def targets_of(name: str, soft: SoftTargets, weight: float) -> Targets:
    """Targets of a loss; two of the clicks the teacher does not know."""
    importance = torch.tensor([0.3, 0.1, 0.2, 0.2, 0.1, 0.1], dtype=torch.double)
    clicks = torch.tensor([1, 20, 7, int(soft.items[3, 0]), 15, 16])
    loss = SOFT_LOSSES[name]
    return Targets(clicks, importance, loss.aim(soft), weight, loss)


def naive_soft(name: str, z: Tensor, listed: Tensor, p: Tensor, rest: Tensor) -> Tensor:
    """One position's loss by the formula of its source; z (V,) the student's scores, listed (K,) columns of it."""
    q = torch.softmax(z, 0)
    if name == "rrd":  # DE-RRD's Utils/loss.py, divided by the number of ranks
        others = torch.tensor([j for j in range(len(z)) if j not in listed.tolist()], dtype=torch.long)
        likely = [z[listed[k]].exp() / (z[listed[k:]].exp().sum() + z[others].exp().sum()) for k in range(len(listed))]
        return -torch.stack(likely).log().mean()
    tail = rest * (1 - q[listed].sum()).log() if rest > 0 else 0
    loss = -(p * q[listed].log()).sum() - tail
    return loss + torch.xlogy(p, p).sum() + torch.xlogy(rest, rest) if name == "topk_tail" else loss


def naive(states: Tensor, table: Tensor, targets: Targets, name: str) -> Tensor:
    """The mixture, one position after another."""
    soft, a, total = targets.soft, targets.weight, torch.zeros((), dtype=states.dtype)
    for i in range(len(states)):
        z = table[1:] @ states[i]
        click = -torch.log_softmax(z, 0)[targets.clicks[i] - 1]
        distilled = naive_soft(name, z[: soft.catalog], soft.items[i] - 1, soft.p[i], soft.rest[i])
        total = total + targets.importance[i] * ((1 - a) * click + a * distilled)
    return total


def with_gradients(loss, states: Tensor, table: Tensor, *rest) -> tuple[Tensor, Tensor, Tensor]:
    states, table = states.clone().requires_grad_(), table.clone().requires_grad_()
    value = loss(states, table, *rest)
    (3 * value).backward()
    return value.detach(), states.grad / 3, table.grad / 3


def student() -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    return torch.randn(P, D, dtype=torch.double), torch.randn(N + 1, D, dtype=torch.double)


def student_that_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """One state a position and a table that gives exactly these scores (P, V)."""
    return torch.eye(P, dtype=torch.double), torch.cat([torch.zeros(1, P, dtype=torch.double), scores.T])


def entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def test_every_choice_of_the_form_is_a_loss():
    assert get_args(SoftLossName) == (*LOSSES, HIDDEN)


@pytest.mark.parametrize("chunk_bytes", [8 * N * 2, 1 << 20])
@pytest.mark.parametrize("k", [1, K])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_definition_over_all_items_and_over_a_sample_of_all(
    name, k, chunk_bytes, monkeypatch
):
    monkeypatch.setattr("recsys.losses._CHUNK_BYTES", {"cpu": chunk_bytes})  # two positions at once, and all
    states, table = student()
    targets = targets_of(name, stored(teacher(), k), 0.7)
    wanted = with_gradients(naive, states, table, targets, name)
    for got in (with_gradients(exact, states, table, targets), with_gradients(sampled, states, table, targets, N)):
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", LOSSES)
def test_items_the_teacher_does_not_know_take_no_part(name):
    states, table = student()
    only_soft = targets_of(name, stored(teacher(), K), 1.0)
    moved = table.clone()
    moved[V + 1 :] += 3
    for loss in (exact, lambda *a: sampled(*a, N)):
        value, _, to_table = with_gradients(loss, states, table, only_soft)
        assert to_table[V + 1 :].abs().max() == 0
        torch.testing.assert_close(loss(states, moved, only_soft), value)


def least(name: str, aimed: SoftTargets, logp: Tensor) -> tuple[Tensor, float]:
    """Scores (P, V) at which a loss is least, as near as there are any, and its mean there."""
    scores = torch.full((P, V), -22.0, dtype=torch.double)
    if name == "topk_tail":
        return logp + 5, 0.0
    if name == "rrd":
        ranks = aimed.items.shape[1]
        towers = 22.0 * torch.arange(ranks, 0, -1, dtype=torch.double).expand(P, -1)
        return scores.scatter(1, aimed.items - 1, towers), 0.0
    buckets = torch.cat([aimed.p, aimed.rest[:, None]], 1)
    others = (aimed.rest / (V - aimed.items.shape[1]))[:, None].expand(P, V)
    q = others.scatter(1, aimed.items - 1, aimed.p)
    return q.clamp_min(1e-26).log(), float((entropy(buckets)).mean())


@pytest.mark.parametrize("name", LOSSES)
def test_at_its_least_a_loss_has_the_stated_value_and_no_gradient(name):
    logp = teacher()
    targets = targets_of(name, stored(logp, K), 1.0)
    targets = replace(
        targets, clicks=targets.clicks.clamp_max(V), importance=torch.full((P,), 1 / P, dtype=torch.double)
    )
    scores, value = least(name, targets.soft, logp)
    for loss in (exact, lambda *a: sampled(*a, V)):
        got, to_states, to_table = with_gradients(loss, *student_that_scores(scores), targets)
        assert got.item() == pytest.approx(value, abs=1e-8)
        assert to_states.abs().max() < 1e-8
        assert to_table.abs().max() < 1e-8
        torch.manual_seed(3)
        nearby = scores + 0.1 * torch.randn_like(scores)
        assert loss(*student_that_scores(nearby), targets) > got - 1e-12


def test_draws_give_the_tail_bucket_on_average_in_value_and_gradient():
    states, table = student()
    soft, drawn = stored(teacher(), K), SOFT_LOSSES["sampled"]
    torch.manual_seed(1)
    several = [with_gradients(exact, states, table, targets_of("sampled", soft, 1.0)) for _ in range(800)]
    value, *gradients = (torch.stack(each).mean(0) for each in zip(*several, strict=True))
    whole = targets_of("topk_tail", soft, 1.0)
    wanted, *theirs = with_gradients(exact, states, table, whole)
    buckets = torch.cat([soft.p, soft.rest[:, None]], 1)
    assert value.item() == pytest.approx(float(wanted + whole.importance @ entropy(buckets)), rel=5e-3)
    for one, other in zip(gradients, theirs, strict=True):
        assert (one - other).abs().max() < 0.02 * other.abs().max()
    aimed = drawn.aim(soft)
    torch.testing.assert_close(aimed.p.sum(1) + aimed.rest, torch.ones(P, dtype=torch.double))
    torch.testing.assert_close((DRAWS * aimed.p).round(), DRAWS * aimed.p)
    assert not torch.equal(aimed.p, drawn.aim(soft).p), "draws are fresh"


def test_the_order_of_the_ranks_by_hand_and_that_the_teachers_is_likelier_than_its_reverse():
    """Three items of 4, 3 and 2 tickets and a rest of 1: 4/10, then 3/6, then 2/3."""
    loss = SOFT_LOSSES["rrd"]
    tickets = torch.tensor([[0.4, 0.3, 0.2]], dtype=torch.double)
    soft = SoftTargets(torch.tensor([[3, 1, 2]]), tickets, torch.tensor([0.1], dtype=torch.double), 5)
    rest = torch.tensor([[0.1]], dtype=torch.double).log()
    straight, reversed_ = loss.value(tickets.log(), rest, soft), loss.value(tickets.flip(1).log(), rest, soft)
    assert straight.item() == pytest.approx(-math.log(4 / 10 * 3 / 6 * 2 / 3) / 3)
    assert reversed_.item() == pytest.approx(-math.log(2 / 10 * 3 / 8 * 4 / 5) / 3)
    assert straight < reversed_


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
@pytest.mark.parametrize("k", [1, K, V])
@pytest.mark.parametrize("name", LOSSES)
def test_it_is_finite_with_one_item_with_all_items_and_far_from_the_teacher(name, k, dtype):
    states, table = (each.to(dtype) for each in student())
    kept = stored(teacher(), k)
    soft = replace(kept, p=kept.p.to(dtype), rest=kept.rest.to(dtype))
    targets = targets_of(name, soft, 0.9)
    targets = replace(targets, importance=targets.importance.to(dtype))
    for scale in (1.0, 1e3):
        for loss in (exact, lambda *a: sampled(*a, N), lambda *a: sampled(*a, 2)):
            for each in with_gradients(loss, states, scale * table, targets):
                assert torch.isfinite(each).all()


def objective_and_batch(name: SoftLossName, weight: float, **how) -> tuple[Distillation, Batch]:
    soft = stored(teacher(), K)
    labels = SoftLabels(
        Labelling("t", "c", V, K),
        soft.items.numpy().astype(np.int32),
        soft.p.log().numpy().astype(np.float16),
        np.zeros(P, np.float32),
        np.arange(P, dtype=np.int32),
    )
    targets, nothing = targets_of(name, soft, weight), torch.zeros(0)
    batch = Batch(nothing, nothing, targets.clicks, targets.importance.float(), torch.arange(P))
    return Distillation(labels, weight, K, name, **how), batch


@pytest.mark.parametrize("name", LOSSES)
def test_the_objective_uses_the_loss_it_is_told_and_its_chunks_share_the_draws(name, monkeypatch):
    states, table = (each.float() for each in student())
    objective, batch = objective_and_batch(name, 0.7)
    torch.manual_seed(2)
    whole = objective(states, table, batch)
    torch.manual_seed(2)
    wanted = naive(states, table, targets_of(name, stored(teacher(), K), 0.7), name)
    if name != "sampled":  # half-precision labels draw as others would, but not always the same
        assert whole.item() == pytest.approx(wanted.item(), rel=2e-3)
    monkeypatch.setattr("recsys.losses._CHUNK_BYTES", {"cpu": 1})
    torch.manual_seed(2)
    torch.testing.assert_close(objective(states, table, batch), whole)


@pytest.mark.parametrize("name", LOSSES)
def test_without_weight_every_loss_is_the_same_undistilled_student_and_draws_nothing(name):
    states, table = (each.float() for each in student())
    objective, batch = objective_and_batch(name, 0.0)
    before = torch.random.get_rng_state()
    got = with_gradients(objective, states, table, batch)
    assert torch.equal(torch.random.get_rng_state(), before)
    default, _ = objective_and_batch("topk_tail", 0.0)
    for one, other in zip(got, with_gradients(default, states, table, batch), strict=True):
        assert torch.equal(one, other)
