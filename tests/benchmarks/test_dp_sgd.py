"""A user moves a step by the clip at most, the noise is what was asked for, and the gradients are the true ones."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks import dp_sgd
from benchmarks.dp_sgd import Course, PrivateStudent, UserLines, clipped_sum, noised, of_each_user, train
from benchmarks.private_student import noised_counts
from recsys.decoder import DecoderShape
from recsys.histories import Histories

ITEMS, LENGTH, USERS = 30, 6, 40


def histories() -> Histories:
    """Users of three to fourteen events, the last two of them held out; half of all events are of weight two."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 15, USERS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    events = int(offsets[-1])
    ends = (lengths - 2).astype(np.int32)
    return Histories(
        tokens=np.array([f"{user:032x}" for user in range(USERS)], "S32"),
        offsets=offsets,
        items=rng.integers(1, ITEMS + 1, events).astype(np.int32),
        times=np.arange(events, dtype=np.int64),
        weights=rng.integers(1, 3, events).astype(np.float32),
        train_end=ends,
        valid_end=ends + 1,
    )


@pytest.fixture
def lines() -> UserLines:
    return UserLines.of(histories(), LENGTH)


@pytest.fixture(params=["ids", "texts"])
def model(request) -> PrivateStudent:
    texts = np.random.default_rng(1).normal(size=(ITEMS, 5)) if request.param == "texts" else None
    model = PrivateStudent(DecoderShape.of(ITEMS, 8, 1, LENGTH), 0, texts)
    with torch.no_grad():  # away from where all gradients look alike
        for weight in model.learnt.values():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    return model


def as_one(gradients) -> torch.Tensor:
    return torch.cat([each.flatten() for each in gradients.values()])


def test_a_users_line_is_the_newest_of_the_training_part_and_nothing_after_it(lines):
    whole = histories()
    user = int(np.argmax(whole.train_end))
    row = int((np.flatnonzero(whole.train_end > 1) == user).argmax())
    learnt = whole.until(user, int(whole.train_end[user]))
    assert len(learnt) > LENGTH + 1
    assert lines.items[row].tolist() == learnt[-LENGTH - 1 : -1].tolist()
    assert lines.labels[row].tolist() == learnt[-LENGTH:].tolist()
    assert len(lines) == (whole.train_end > 1).sum()
    assert lines.importance.sum(1).numpy() == pytest.approx(np.ones(len(lines)))


def test_the_gradients_of_each_user_are_those_of_autograd(model, lines):
    found = of_each_user(model, lines)
    for user in range(0, len(lines), 7):
        model.zero_grad()
        alone = lines.part(torch.tensor([user]))
        table = model.item_table()
        losses = cross_entropy(
            model.student.states(alone.items, table)[0] @ table[1:].T, alone.labels[0] - 1, reduction="none"
        )
        (losses * alone.importance[0]).sum().backward()
        for name, weight in model.learnt.items():
            torch.testing.assert_close(found[name][user], weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", [0.01, 0.5, 2.0])
def test_one_user_moves_the_sum_by_the_clip_at_most(model, lines, clip, monkeypatch):
    monkeypatch.setattr(dp_sgd, "CHUNK_BYTES", 20_000)  # several chunks
    everybody = as_one(clipped_sum(model, lines, clip))
    norms = torch.cat([each.flatten(1) for each in of_each_user(model, lines).values()], 1).norm(dim=1)
    for user in range(len(lines)):
        others = lines.part(torch.tensor([one for one in range(len(lines)) if one != user]))
        moved = (everybody - as_one(clipped_sum(model, others, clip))).norm()
        assert moved <= clip * 1.001
        assert moved == pytest.approx(min(float(norms[user]), clip), rel=0.01)


def test_a_step_that_draws_nobody_is_noise_alone(model, lines):
    nobody = clipped_sum(model, lines.part(torch.tensor([], dtype=torch.int64)), 0.5)
    assert as_one(nobody).norm() == 0
    assert nobody.keys() == model.learnt.keys()


def test_the_noise_has_the_deviation_that_was_asked_for():
    still = {"a": torch.full((200, 100), 3.0), "b": torch.zeros(5_000)}
    found = noised(still, 2.5, torch.Generator().manual_seed(0))
    assert float((found["a"] - 3).std()) == pytest.approx(2.5, rel=0.03)
    assert float(found["b"].std()) == pytest.approx(2.5, rel=0.05)
    assert abs(float(found["a"].mean()) - 3) < 0.1
    assert noised(still, 0.0, torch.Generator())["b"].eq(0).all()


def test_a_step_adds_noise_of_noise_times_clip_to_the_sum_of_those_drawn(model, lines, monkeypatch):
    told = []
    monkeypatch.setattr(dp_sgd, "noised", lambda total, deviation, _: told.append(deviation) or total)
    train(model, lines, Course(steps=3, sampling=0.5, clip=0.25, noise=4.0, learning_rate=0.01, seed=0))
    assert told == [1.0, 1.0, 1.0]


def test_users_are_drawn_by_coin_each_step_anew(model, lines, monkeypatch):
    drawn, real = [], dp_sgd.clipped_sum
    monkeypatch.setattr(dp_sgd, "clipped_sum", lambda of, some, clip: drawn.append(len(some)) or real(of, some, clip))
    train(model, lines, Course(steps=60, sampling=0.3, clip=1.0, noise=0.0, learning_rate=0.01, seed=0))
    assert len(set(drawn)) > 5
    assert np.mean(drawn) == pytest.approx(0.3 * len(lines), rel=0.15)


def test_without_noise_it_learns_and_what_is_served_scores_as_it_does(model, lines):
    @torch.no_grad()
    def loss() -> float:
        table = model.item_table()
        scores = model.student.states(lines.items, table) @ table[1:].T
        return float(
            (lines.importance * cross_entropy(scores.transpose(1, 2), lines.labels - 1, reduction="none")).sum()
        )

    before = loss()
    train(model, lines, Course(steps=60, sampling=0.5, clip=1.0, noise=0.0, learning_rate=0.03, seed=0))
    assert loss() < 0.8 * before
    served = model.folded()
    with torch.no_grad():
        theirs = served.states(lines.items[:4], served.item_table())
        mine = model.student.states(lines.items[:4], model.item_table())
    torch.testing.assert_close(theirs[:, 0], mine[:, 0])


def test_a_user_weighs_one_in_noised_counts(lines):
    everybody = noised_counts(lines, ITEMS, 0.0, 0)
    for user in range(len(lines)):
        others = lines.part(torch.tensor([one for one in range(len(lines)) if one != user]))
        assert np.linalg.norm(everybody - noised_counts(others, ITEMS, 0.0, 0)) == pytest.approx(1)
    noise = noised_counts(lines, ITEMS, 3.0, 0) - everybody
    assert noise.std() == pytest.approx(3.0, rel=0.35)
