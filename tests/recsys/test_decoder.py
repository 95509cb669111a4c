"""The decoder's own dropout. What the decoder must do besides is tested with training, teacher and student."""

import pytest
import torch

from recsys.decoder import Dropout


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(share):
    torch.manual_seed(0)
    dropped = Dropout(share)(torch.ones(50, 40, 100))
    assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert len(dropped.unique()) == 2
    by_place = (dropped == 0).float().mean((0, 1))
    assert by_place.min() > share - 0.06  # each of the eight bytes of a draw decides alike
    assert by_place.max() < share + 0.06


def test_dropout_follows_the_global_generator_and_also_fits_odd_sizes():
    torch.manual_seed(3)
    first = Dropout(0.5)(torch.ones(7, 3))
    second = Dropout(0.5)(torch.ones(7, 3))
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(torch.ones(7, 3)), first)
    assert not torch.equal(first, second)


def test_the_gradient_passes_only_where_something_was_kept():
    x = torch.full((9, 9), 2.0, requires_grad=True)
    kept = Dropout(0.25)(x)
    kept.sum().backward()
    assert torch.equal(x.grad * 2, kept)


def test_dropout_is_off_when_scoring_and_at_zero():
    x = torch.randn(4, 4)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_nothing_can_be_dropped_whole():
    assert Dropout(0.9999)(torch.ones(10_000)).isfinite().all()
