"""The training loop: batches, schedule, best weights, resume; and the scorer it validates with."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from recsys.decoder import Decoder, DecoderShape
from recsys.errors import TrainingError
from recsys.histories import Cases, Histories
from recsys.training import Batch, HardLabels, Schedule, Scorer, fit, ranking_validator, seeded
from recsys.windows import Windows

CPU = torch.device("cpu")


def _histories(rows: list[list[int]], held_out: int = 1, times: list[list[int]] | None = None) -> Histories:
    """Users with the given items; the last `held_out` of each are validation, nothing is test."""
    lengths = np.array([len(row) for row in rows])
    clock = times or [list(range(len(row))) for row in rows]
    ends = (lengths - held_out).astype(np.int32)
    return Histories(
        tokens=np.array([f"{user:032x}" for user in range(len(rows))], "S32"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.concatenate([np.array(row, np.int32) for row in rows]),
        times=np.concatenate([np.array(row, np.int64) for row in clock]),
        weights=np.ones(lengths.sum(), np.float32),
        train_end=ends,
        valid_end=lengths.astype(np.int32),
    )


def _cases(histories: Histories) -> Cases:
    ends = histories.train_end
    return Cases(
        users=np.arange(histories.users),
        histories=[histories.until(user, ends[user]) for user in range(histories.users)],
        targets=[histories.until(user, ends[user] + 1)[-1:] for user in range(histories.users)],
        exclude_seen=False,
    )


def _markov(users: int, items: int, length: int, seed: int = 0) -> list[list[int]]:
    """Walks in which the next item follows from the present one by a fixed permutation, nine times of ten."""
    rng = np.random.default_rng(seed)
    following = rng.permutation(items) + 1
    rows = []
    for _ in range(users):
        row = [int(rng.integers(1, items + 1))]
        while len(row) < length:
            free = rng.random() < 0.1
            row.append(int(rng.integers(1, items + 1)) if free else int(following[row[-1] - 1]))
        rows.append(row)
    return rows


def _decoder(items: int, length: int = 8, width: int = 16, dropout: float = 0.2, seed: int = 0) -> Decoder:
    with seeded(CPU, seed):
        return Decoder(DecoderShape.of(items, width, 1, length), dropout)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Schedule and batches


def test_the_rate_warms_up_then_falls_to_two_percent():
    schedule = Schedule(epochs=1, learning_rate=2.0, seed=0)
    rates = [schedule.rate(progress, warm_up=0.1) for progress in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.0, 1.0, 2.0, 2.0 * (0.02 + 0.98 / 2), 0.04])


def test_a_batch_holds_windows_labels_and_flat_positions():
    histories = _histories([[5, 6, 7], [1, 2, 3, 4, 8, 9, 10]])
    histories = replace(histories, weights=np.arange(10, dtype=np.float32))
    windows = Windows.of_training(histories, 4)
    batch = Batch.of(histories, windows, np.array([0, 2]), CPU)
    # User 0 trains on 5 -> 6; the second window of user 1 reads 3 4 8 and owns 8 -> 9 alone.
    assert batch.items.tolist() == [[5, 0, 0], [3, 4, 8]]
    assert batch.owned.tolist() == [[True, False, False], [False, False, True]]
    assert batch.positions.tolist() == [0, 7]
    assert batch.labels.tolist() == [6, 9]
    assert batch.weights.tolist() == [1.0, 8.0]


def test_held_out_events_are_never_labels_also_when_baskets_are_redrawn():
    histories = _histories([[1, 2, 3, 4]] * 20, times=[[0, 0, 0, 0]] * 20)
    seen: set[int] = set()
    orders: list[list[int]] = []

    def objective(states, table, batch):
        seen.update(batch.labels.tolist(), batch.items.unique().tolist())
        orders.append(batch.labels.tolist())
        return states.square().mean()

    schedule = Schedule(epochs=3, learning_rate=1e-3, seed=0, redraw_baskets=True)
    fit(_decoder(4), histories, 8, schedule, objective, lambda: 0.0)
    assert seen == {1, 2, 3}
    assert orders[0] != orders[1]
    orders.clear()
    fit(_decoder(4), histories, 8, replace(schedule, redraw_baskets=False), objective, lambda: 0.0)
    assert orders[0] == orders[1] == [2, 3] * 20


def test_hard_labels_weigh_events():
    states = torch.tensor([[1.0], [0.0]])
    table = torch.tensor([[0.0], [math.log(3)], [0.0]])
    batch = Batch(None, None, torch.tensor([1, 2]), torch.tensor([1.0, 3.0]), None)
    expected = (1 * math.log(4 / 3) + 3 * math.log(2)) / 4
    assert HardLabels()(states, table, batch).item() == pytest.approx(expected)
    assert HardLabels(full_up_to=1, negatives=2)(states, table, batch).item() == pytest.approx(expected)


def test_norms_and_biases_do_not_decay():
    model = _decoder(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before = _weights(model)
    schedule = Schedule(epochs=1, learning_rate=0.1, seed=0, weight_decay=0.5)
    fit(model, _histories([[1, 2, 3]] * 4), 8, schedule, lambda s, t, b: 0 * s.sum(), lambda: 0.0)
    for name, after in _weights(model).items():
        assert torch.equal(after, before[name]) == (after.ndim == 1), name


# What a run keeps, and what stops it


def test_the_best_epoch_is_kept_and_on_a_tie_the_later():
    model, kept = _decoder(6), []
    validations = iter([0.1, 0.3, 0.3, 0.2])
    epochs = fit(
        model,
        _histories(_markov(20, 6, 8)),
        8,
        Schedule(epochs=4, learning_rate=1e-2, seed=0),
        HardLabels(),
        lambda: next(validations),
        on_epoch=lambda epoch: kept.append(_weights(model)),
    )
    assert [epoch.validation_ndcg for epoch in epochs] == [0.1, 0.3, 0.3, 0.2]
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert _same(_weights(model), kept[2])
    assert not _same(kept[2], kept[1])


def test_the_loss_falls_on_what_can_be_learnt():
    histories = _histories(_markov(60, 12, 9))
    model = _decoder(12)
    validate = ranking_validator(model, _cases(histories))
    epochs = fit(model, histories, 8, Schedule(12, 2e-2, 0, batch_tokens=128), HardLabels(), validate)
    assert epochs[0].loss > 2.0 > 1.3 > epochs[-1].loss  # uniform is log 12 = 2.48, the rule's entropy about 0.56
    assert epochs[-1].validation_ndcg > 0.8


def test_a_loss_that_is_no_number_names_the_step_and_the_last_good_epoch():
    calls = []

    def objective(states, table, batch):
        calls.append(batch)
        return states.sum() * (math.nan if len(calls) == 3 else 1)

    histories = _histories([[1, 2, 3]] * 4)
    with pytest.raises(TrainingError, match=r"nan at step 1 of epoch 3; the last good epoch is 2"):
        fit(_decoder(3), histories, 8, Schedule(4, 1e-3, 0), objective, lambda: 0.0)


def test_nothing_to_train_on_is_said():
    with pytest.raises(TrainingError, match="no training position"):
        fit(_decoder(3), _histories([[1, 2]] * 4), 8, Schedule(4, 1e-3, 0), HardLabels(), lambda: 0.0)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    fit(_decoder(6), _histories(_markov(9, 6, 5)), 8, Schedule(1, 1e-3, 0), HardLabels(), lambda: 0.0)
    assert torch.equal(torch.random.get_rng_state(), before)


# Resume


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("objective", [HardLabels(), HardLabels(full_up_to=1, negatives=4)], ids=["full", "sampled"])
def test_a_run_killed_after_epoch_two_goes_on_to_the_same_bits(tmp_path, objective):
    rows = _markov(50, 10, 9)
    histories = _histories(rows, times=[[i // 3 for i in range(9)]] * len(rows))
    schedule = Schedule(4, 1e-2, seed=3, batch_tokens=64, redraw_baskets=True)
    checkpoint = tmp_path / "runs" / "teacher"

    def run(on_epoch, checkpoint):
        model = _decoder(10)
        cases = _cases(histories)
        validate = ranking_validator(model, cases)
        return model, fit(model, histories, 8, schedule, objective, validate, on_epoch=on_epoch, checkpoint=checkpoint)

    def kill(epoch):
        torch.rand(99)  # a callback may draw: it must not matter
        if epoch.number == 2:
            raise _KilledError

    whole, whole_epochs = run(lambda epoch: None, None)
    with pytest.raises(_KilledError):
        run(kill, checkpoint)
    assert checkpoint.exists()
    heard = []
    resumed, epochs = run(heard.append, checkpoint)
    assert _same(_weights(resumed), _weights(whole))
    assert [replace(e, seconds=0) for e in epochs] == [replace(e, seconds=0) for e in whole_epochs]
    assert heard == epochs
    assert list(checkpoint.parent.iterdir()) == []


def test_a_run_without_time_keeps_its_best_so_far_and_with_more_time_goes_on_to_the_same_bits(tmp_path):
    histories = _histories(_markov(50, 10, 9))
    schedule = Schedule(4, 1e-2, seed=3, batch_tokens=64)
    checkpoint = tmp_path / "teacher"

    def run(answers, checkpoint=None):
        model, asked = _decoder(10), iter(answers)
        validate = ranking_validator(model, _cases(histories))
        objective = HardLabels()
        return model, fit(
            model, histories, 8, schedule, objective, validate, enough=lambda: next(asked), checkpoint=checkpoint
        )

    whole, whole_epochs = run([False] * 3)
    _, short = run([True], checkpoint)
    assert len(short) == 1, "one epoch there is in any case"
    _, longer = run([False, True], checkpoint)
    assert len(longer) == 2
    resumed, epochs = run([False, False], checkpoint)
    assert _same(_weights(resumed), _weights(whole))
    assert [e.loss for e in epochs] == [e.loss for e in whole_epochs]
    assert not checkpoint.exists()


def test_a_resumed_run_still_knows_the_best_epoch_before_the_kill(tmp_path):
    histories, kept = _histories(_markov(20, 6, 8)), []

    def run(validations, on_epoch):
        model = _decoder(6)
        values = iter(validations)
        schedule = Schedule(3, 1e-2, 0)
        hear = lambda epoch: on_epoch(model, epoch)  # noqa: E731
        path = tmp_path / "checkpoint"
        fit(model, histories, 8, schedule, HardLabels(), lambda: next(values), on_epoch=hear, checkpoint=path)
        return model

    def kill(model, epoch):
        kept.append(_weights(model))
        if epoch.number == 2:
            raise _KilledError

    with pytest.raises(_KilledError):
        run([0.9, 0.1], kill)
    model = run([0.2], lambda model, epoch: None)  # only epoch 3 is validated again
    assert _same(_weights(model), kept[0])


def _checkpointed(tmp_path, learning_rate=1e-2):
    """The state of a run stopped after its first epoch, and the function that goes on."""
    histories, path = _histories(_markov(20, 6, 8)), tmp_path / "checkpoint"

    def stop(epoch):
        raise _KilledError

    def go_on(rate, on_epoch=lambda epoch: None):
        numbers = []

        def validate():
            numbers.append(1)
            return 0.5

        model = _decoder(6)
        fit(model, histories, 8, Schedule(2, rate, 0), HardLabels(), validate, on_epoch=on_epoch, checkpoint=path)
        return len(numbers)

    with pytest.raises(_KilledError):
        go_on(learning_rate, stop)
    return path, go_on


def test_a_whole_checkpoint_is_used(tmp_path):
    _, go_on = _checkpointed(tmp_path)
    assert go_on(1e-2) == 1


def test_a_checkpoint_of_another_run_is_not_used(tmp_path, caplog):
    _, go_on = _checkpointed(tmp_path)
    assert go_on(2e-2) == 2
    assert "is of another run and is not used" in caplog.text


@pytest.mark.parametrize("at", [0.02, 0.5, 0.99])
def test_a_damaged_checkpoint_is_not_used(tmp_path, caplog, at):
    path, go_on = _checkpointed(tmp_path)
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)
    assert go_on(1e-2) == 2
    assert "is damaged and is not used" in caplog.text


def test_a_torn_checkpoint_is_not_used(tmp_path, caplog):
    path, go_on = _checkpointed(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    assert go_on(1e-2) == 2
    assert "is damaged and is not used" in caplog.text


# Order matters


def test_shuffled_histories_lose_against_ordered_ones():
    rows = _markov(150, 20, 9)
    rng = np.random.default_rng(1)
    shuffled = [[*rng.permutation(row[:-1]).tolist(), row[-1]] for row in rows]

    def learnt(rows):
        histories = _histories(rows)
        model = _decoder(20)
        validate = ranking_validator(model, _cases(histories))
        fit(model, histories, 8, Schedule(10, 1e-2, 0, batch_tokens=256), HardLabels(), validate)
        return validate()

    assert learnt(rows) > 0.8
    assert learnt(shuffled) < 0.6


# Scorer and validator


class _Successor(nn.Module):
    """Knows for certain that item c is followed by c + 1, and likes the items after that in falling order."""

    def __init__(self, items: int, length: int = 8) -> None:
        super().__init__()
        self.items, self.length = items, length
        self.table = nn.Parameter(torch.eye(items + 1))

    def item_table(self):
        return self.table

    def states(self, items, table):
        ahead = (torch.arange(len(table)) - items[..., None] - 1) % len(table)
        return -ahead.float()


def test_the_scorer_reads_the_newest_known_items():
    scorer = Scorer(_Successor(4), length=2, name="successor")
    rows = scorer.scores([np.array([1, 2], np.int32), np.array([1, 9], np.int32), np.array([9], np.int32)])
    assert scorer.items == 4
    assert rows.argmax(1)[:2].tolist() == [2, 1]  # item 3 follows 2; item 9 is unknown, so item 2 follows 1
    assert not rows[2].any()


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_a_row_does_not_depend_on_its_batch_mates(batch_tokens):
    model = _decoder(30, length=10).eval()
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 31, n).astype(np.int32) for n in (1, 10, 3, 25, 7, 2, 10)]
    together = Scorer(model, 10, "decoder", batch_tokens).scores(histories)
    alone = np.concatenate([Scorer(model, 10, "decoder").scores([history]) for history in histories])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    newest = Scorer(model, 10, "decoder").scores([histories[3][-10:]])
    np.testing.assert_allclose(together[3:4], newest, rtol=0, atol=1e-5)


def test_the_validator_is_the_mean_ndcg_at_10():
    histories = [np.array(h, np.int32) for h in ([1], [5, 2], [3])]
    targets = [np.array(t, np.int32) for t in ([2], [4], [99])]
    # Item 2 comes first after 1: 1. After 2 come 3, then 4: 1 / log2(3). Item 99 is not known: 0.
    for exclude, second in ((False, 1 / math.log2(3)), (True, 1 / math.log2(3))):
        cases = Cases(np.arange(3), histories, targets, exclude_seen=exclude)
        assert ranking_validator(_Successor(20), cases)() == pytest.approx((1 + second + 0) / 3)
    seen = Cases(np.arange(1), [np.array([3, 2], np.int32)], [np.array([4], np.int32)], exclude_seen=True)
    assert ranking_validator(_Successor(20), seen)() == pytest.approx(1)  # 3 was seen, so 4 moves up


def test_the_validator_takes_evenly_spaced_cases():
    histories = [np.array([1], np.int32)] * 5
    targets = [np.array([t], np.int32) for t in (2, 3, 3, 3, 2)]
    cases = Cases(np.arange(5), histories, targets, exclude_seen=True)
    assert ranking_validator(_Successor(20), cases, most=2)() == pytest.approx(1)


def test_states_are_causal_so_padding_does_not_reach_them():
    model = _decoder(9).eval()
    short = torch.tensor([[3, 1]])
    long = torch.tensor([[3, 1, 0, 0], [3, 1, 7, 2]])
    with torch.inference_mode():
        states = [model.states(items, model.item_table())[:, :2] for items in (short, long)]
    for a, b in pairwise([states[0][0], states[1][0], states[1][1]]):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_part_of_an_epoch_takes_that_share_of_its_batches_and_the_rate_falls_to_its_end(monkeypatch):
    assert Schedule.of(0.25, 0.1, 3) == Schedule(1, 0.1, 3, share=0.25)
    assert Schedule.of(2.5, 0.1, 3) == Schedule(3, 0.1, 3, share=2.5 / 3)
    assert Schedule.of(2, 0.1, 3) == Schedule(2, 0.1, 3)


def test_of_a_part_of_an_epoch_the_batches_are_drawn_anew_and_counted(monkeypatch):
    histories = _histories(_markov(120, 20, 9))
    seen: list[int] = []

    class Counted(HardLabels):
        def __call__(self, states, table, batch):
            seen.append(len(batch.labels))
            return super().__call__(states, table, batch)

    def trained(share: float) -> list[int]:
        seen.clear()
        model = _decoder(20)
        fit(model, histories, 8, Schedule(2, 0.01, 0, share=share), Counted(), lambda: 0.5)
        return list(seen)

    whole, half = trained(1.0), trained(0.5)
    assert len(half) == 2 * math.ceil(len(whole) / 2 / 2)
    assert sum(half) < 0.7 * sum(whole)
