"""Cross-entropy over a catalog: in chunks and sampled, against the textbook."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from recsys import softmax


def _problem(positions: int, items: int, width: int = 5):
    torch.manual_seed(1)
    states = torch.randn(positions, width, requires_grad=True)
    table = torch.randn(items + 1, width, requires_grad=True)
    labels = torch.randint(1, items + 1, (positions,))
    weights = torch.rand(positions) + 0.1
    return states, table, labels, weights


def _plain(states, table, labels, weights):
    losses = cross_entropy(states @ table[1:].T, labels - 1, reduction="none")
    return (losses * weights).sum() / weights.sum()


def test_full_is_the_log_probability_of_the_label():
    states = torch.tensor([[1.0, 0.0]])
    table = torch.tensor([[0.0, 0.0], [0.0, 9.0], [math.log(3), 0.0]])
    loss = softmax.full(states, table, torch.tensor([2]), torch.tensor([7.0]))
    assert loss.item() == pytest.approx(math.log(4 / 3), abs=1e-6)


@pytest.mark.parametrize(("positions", "size"), [(1, 1), (7, 1), (300, 1), (7, 100), (300, 1e-3)])
def test_full_has_the_loss_and_gradients_of_the_unchunked(monkeypatch, positions, size):
    monkeypatch.setattr(softmax, "CHUNK_BYTES", 50 * 11 * 4)  # fifty rows a chunk
    states, table, labels, weights = _problem(positions, items=11)
    states = (states * size).detach().requires_grad_()
    assert (softmax.reach(states, table) > softmax.SAFE) == (size == 100)
    expected = torch.autograd.grad(3 * _plain(states, table, labels, weights), (states, table))
    found = torch.autograd.grad(3 * softmax.full(states, table, labels, weights), (states, table))
    torch.testing.assert_close(softmax.full(states, table, labels, weights), _plain(states, table, labels, weights))
    torch.testing.assert_close(found, expected)


def test_sampled_with_every_item_drawn_is_full():
    states, table, labels, weights = _problem(40, items=11)
    expected = _plain(states, table, labels, weights)
    found = softmax.sampled(states, table, labels, weights, negatives=11)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (states, table)), torch.autograd.grad(expected, (states, table))
    )


def test_sampled_estimates_the_denominator_without_bias():
    states, table, labels, weights = _problem(1, items=50)
    scores = (states @ table[1:].T)[0]
    others = scores.exp().sum() - scores[labels[0] - 1].exp()
    estimates = []
    for _ in range(3_000):
        loss = softmax.sampled(states, table, labels, weights, negatives=20).detach()
        estimates.append((loss.exp() - 1) * scores[labels[0] - 1].exp().detach())
    estimates = torch.stack(estimates)
    error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - others) < 4 * error
    assert error < 0.02 * others


def test_sampled_never_counts_the_label_as_its_own_negative():
    states = torch.tensor([[1.0]])
    table = torch.tensor([[0.0], [30.0], [0.0]])
    loss = softmax.sampled(states, table, torch.tensor([1]), torch.ones(1), negatives=2)
    assert loss.item() == pytest.approx(0, abs=1e-6)
