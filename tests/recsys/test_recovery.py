"""Training with rounded weights: what is computed is what a file holds, what is learnt passes through."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.decoder import DecoderShape
from recsys.graph import serving_graph
from recsys.histories import Cases, Histories
from recsys.quantize import RowTable, StraightThrough, clips, rounded, rounding
from recsys.recovery import ROUNDING_RATES, Recoverer, Recovery, Retrainer, Retraining
from recsys.student import Student, grow
from recsys.training import Batch, HardLabels

ITEMS, LENGTH, USERS = 20, 9, 60


def matrix(rows: int = 40, columns: int = 16) -> Tensor:
    """Rows of all sizes, one of zeros, one with a value that outweighs the rest."""
    drawn = np.random.default_rng(0).normal(size=(rows, columns)) * np.geomspace(1e-3, 1e3, rows)[:, None]
    drawn[0], drawn[1, 3] = 0, 1.0
    return torch.from_numpy(drawn.astype(np.float32)).requires_grad_()


@pytest.mark.parametrize("bits", [4, 8])
def test_forward_is_what_a_file_holds_and_the_gradient_passes_as_if_nothing_was_rounded(bits: int) -> None:
    table, outer = matrix(), torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    found = StraightThrough(table, bits)(table)
    held = torch.from_numpy(RowTable.of(table.detach().numpy(), bits).dequantized())
    assert torch.equal(found, held)
    assert not torch.equal(found, table)
    (found * outer).sum().backward()
    assert torch.equal(table.grad, outer)


def test_the_share_of_the_range_is_searched_once_and_scales_follow_the_rows() -> None:
    table = matrix().detach()
    through, before = StraightThrough(table, 4), clips(table.numpy(), 4)
    assert {1.0} < set(before.round(2).tolist())  # some rows are better off without their largest value
    moved = table.flip(1) * torch.linspace(0.5, 2, 16)
    largest = torch.from_numpy(before) * moved.abs().amax(1)
    assert torch.allclose(through(moved).abs().amax(1), largest, rtol=2**-8)  # scales have sixteen bits
    assert np.array_equal(through.clips.numpy(), before)


def histories() -> tuple[Histories, Cases]:
    """Users who walk through the catalog in steps of one or two."""
    rng = np.random.default_rng(0)
    walks = [np.cumsum(np.r_[rng.integers(0, ITEMS), rng.integers(1, 3, 7)]) % ITEMS + 1 for _ in range(USERS)]
    ends = np.full(USERS, 7, np.int32)
    known = Histories(
        tokens=np.array([f"{user:032x}" for user in range(USERS)], "S32"),
        offsets=np.arange(USERS + 1, dtype=np.int64) * 8,
        items=np.concatenate(walks).astype(np.int32),
        times=np.arange(USERS * 8, dtype=np.int64),
        weights=np.ones(USERS * 8, np.float32),
        train_end=ends,
        valid_end=ends,
    )
    read = [known.until(user, 7) for user in range(USERS)]
    cases = Cases(np.arange(USERS), read, [walk[7:].astype(np.int32) for walk in walks], exclude_seen=False)
    return known, cases


def student(items: int = ITEMS) -> Student:
    return Student.untrained(DecoderShape.of(items, 16, 1, LENGTH), 0.1, seed=0).eval()


def recovery() -> Recovery:
    known, cases = histories()
    return Recovery(known, HardLabels(), 1e-2, cases, seed=0, distilled=False)


def rounded_in_training(recovery: Recovery, epochs: int, student: Student) -> Student:
    return Retrainer(recovery, epochs).trained(Retraining(student, bits=4))[0]


def same(one: Student, other: Student) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("bits", [4, 8])
def test_inside_a_decoder_computes_as_its_file_does(bits: int) -> None:
    model, items = student(), torch.arange(1, LENGTH + 1)[None]
    as_file, table = rounded(model, bits), RowTable.of(model.table.weight.detach().numpy(), bits).dequantized()
    with torch.no_grad():
        expected = as_file.states(items, torch.from_numpy(table))
        with rounding(model, bits):
            assert torch.equal(model.item_table(), torch.from_numpy(table))
            assert torch.equal(model.states(items, model.item_table()), expected)
    assert type(model) is Student
    assert torch.equal(model.item_table(), torch.from_numpy(table))
    assert set(model.state_dict()) == set(student().state_dict())
    again = RowTable.of(model.table.weight.detach().numpy(), bits)  # what is rounded already is rounded to itself
    assert np.allclose(again.dequantized(), table, rtol=1e-6, atol=0)
    assert len(serving_graph(model, bits)) == len(serving_graph(student(), bits))


def test_thirty_two_bits_change_nothing() -> None:
    model = student()
    with rounding(model, 32):
        assert same(model, student())
    assert same(model, student())


def test_the_table_of_input_and_output_is_one_and_the_objective_meets_it_rounded() -> None:
    levels = []

    def heard(states: Tensor, table: Tensor, batch: Batch) -> Tensor:
        whole = table.detach() / table.detach().abs().amax(1, keepdim=True).clamp_min(1e-9) * 7
        levels.append((whole - whole.round()).abs().max().item())
        return HardLabels()(states, table, batch)

    made = rounded_in_training(replace(recovery(), objective=heard), 2, student())
    assert levels
    assert max(levels) < 1e-5
    assert not same(made, student())  # it did learn
    whole = RowTable.of(made.table.weight.detach().numpy(), 4)
    assert np.allclose(whole.dequantized(), made.table.weight.detach().numpy(), rtol=1e-6, atol=0)


def test_the_same_seed_learns_the_same_bytes(one_thread: None) -> None:
    made = [rounded_in_training(recovery(), 2, student()) for _ in range(2)]
    assert same(*made)
    other = rounded_in_training(replace(recovery(), seed=1), 2, student())
    assert not same(made[0], other)


def test_a_row_from_a_text_is_not_pushed_away_by_rounded_training() -> None:
    """The last item has no training event."""
    longer = grow(student(), ITEMS + 1, rows=torch.full((1, 16), 0.3))
    made = rounded_in_training(recovery(), 1, longer)
    assert torch.equal(made.table.weight[-1], longer.table.weight[-1])


def test_of_the_rates_of_rounding_the_better_is_kept_for_each_student() -> None:
    orders: list[Retraining] = []

    def crew(given):
        """Ends in another order than it was asked, and in the second student's case with equal results."""
        orders.extend(given)
        reached = {("a", ROUNDING_RATES[0]): 0.1, ("a", ROUNDING_RATES[1]): 0.2}
        made = [((each.student, each.rate), reached.get((each.student, each.rate), 0.3)) for each in orders]
        return reversed(list(enumerate(made)))

    recoverer = Recoverer(None, None, crew)
    assert list(recoverer.rounded(iter([("a", 4), ("b", 8)]))) == [
        (0, ("a", ROUNDING_RATES[1])),
        (1, ("b", ROUNDING_RATES[0])),
    ]
    assert [(each.student, each.bits, each.rate) for each in orders] == [
        (student, bits, rate) for student, bits in (("a", 4), ("b", 8)) for rate in ROUNDING_RATES
    ]
    orders.clear()
    assert list(recoverer.rounded(iter([]))) == []
