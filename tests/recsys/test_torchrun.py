"""Two processes over gloo train what one does, and go on where they were when one of them is killed."""

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from recsys import lm_teacher, teacher, torchrun
from recsys.batch import Batch
from recsys.config import LmTeacherConfig, TeacherConfig
from recsys.decoder import Decoder, DecoderShape
from recsys.errors import LanguageModelError, TrainingError
from recsys.histories import Cases, Histories
from recsys.lm_teacher import fit_lm_teacher
from recsys.ranks import ALONE
from recsys.teacher import fit_teacher
from recsys.torchrun import Torchrun
from recsys.training import HardLabels, seeded
from recsys.windows import Windows

ITEMS, LENGTH, CPU = 12, 8, torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def _shop(users: int = 60) -> tuple[Histories, Cases]:
    """Everybody walks round a ring of items, some a longer way than others, and now and then jumps."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 12, users)
    steps = [np.where(rng.random(length) < 0.1, rng.integers(ITEMS, size=length), 1) for length in lengths]
    rows = [(np.cumsum(step) % ITEMS + 1).astype(np.int32) for step in steps]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    histories = Histories(
        tokens=np.array([f"{user:032x}" for user in range(users)], "S32"),
        offsets=offsets,
        items=np.concatenate(rows),
        times=np.concatenate([np.arange(length) // 2 for length in lengths]),
        weights=rng.choice(np.array([0.2, 1.0], np.float32), lengths.sum()),
        train_end=(lengths - 1).astype(np.int32),
        valid_end=lengths.astype(np.int32),
    )
    return histories, Cases(np.arange(users), [r[:-1] for r in rows], [r[-1:] for r in rows], exclude_seen=False)


def _vectors() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((ITEMS, 5)).astype(np.float32)


def _config(dropout: float) -> TeacherConfig:
    return TeacherConfig(width=16, blocks=1, dropout=dropout, epochs=3, learning_rate=1e-2)


# What is trained here, alone and by ranks. The ranks find these functions by their module.


def fit_full_then_sampled(*arguments, on_epoch, checkpoint, **options):
    """Two trainings, the epochs numbered through."""
    epochs = []

    def hear(epoch):
        epochs.append(replace(epoch, number=len(epochs) + 1))
        on_epoch(epochs[-1])

    for name, objective in (("full", HardLabels), ("sampled", partial(HardLabels, full_up_to=1, negatives=4))):
        own = {**options, "checkpoint": checkpoint and checkpoint.with_name(name)}
        with patch.object(teacher, "HardLabels", objective):
            trained, _ = fit_teacher(*arguments, on_epoch=hear, **own)
    return trained, epochs


def fit_without_dropout(*arguments, ranks=ALONE, **options):
    """A language model's dropout is no knob."""
    with patch.object(lm_teacher, "DROPOUT", 0.0):
        trained, epochs = fit_lm_teacher(*arguments, ranks=ranks, **options)
    frozen = trained.backbone.layers[1].mlp.down_proj.weight
    here = frozen.to_local() if ranks.world > 1 else frozen
    assert here.numel() * ranks.world == frozen.numel(), "each rank holds its part of what is frozen"
    return trained, epochs


def fit_with_a_death(*arguments, on_epoch, ranks=ALONE, scene, **options):
    """The second rank is killed after its second epoch, once. By then the first epoch is in the checkpoint."""

    def die(epoch):
        on_epoch(epoch)
        if ranks.rank == 1 and epoch.number == 2 and not scene.exists():
            scene.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return fit_teacher(*arguments, on_epoch=die, ranks=ranks, **options)


def fit_and_refuse(*arguments, **options):
    raise LanguageModelError("there is none", where="here", mend="Bring one.")


def fit_and_fail(*arguments, **options):
    raise ValueError("nobody thought of this")


# Parts


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_parts_of_a_batch_have_its_loss_and_its_gradient(parts):
    histories, _ = _shop()
    windows = Windows.of_training(histories, LENGTH)
    whole = Batch.of(histories, windows, np.array([3, 8, 1]), CPU)
    with seeded(CPU, 0):
        model = Decoder(DecoderShape.of(ITEMS, 16, 1, LENGTH), dropout=0)

    def lost(batch, share):
        table = model.item_table()
        loss = share * HardLabels()(model.states(batch.items, table)[batch.owned], table, batch)
        loss.backward()
        gradients = [weight.grad.clone() for weight in model.parameters()]
        model.zero_grad()
        return loss.item(), gradients

    loss, gradients = lost(whole, 1.0)
    several = [lost(*whole.part(number, parts)) for number in range(parts)]
    assert sum(part for part, _ in several) == pytest.approx(loss, rel=1e-6)
    for place, gradient in enumerate(gradients):
        torch.testing.assert_close(sum(part[place] for _, part in several), gradient, rtol=1e-5, atol=1e-7)


def test_each_window_is_in_one_part_with_its_own_labels():
    histories, _ = _shop()
    whole = Batch.of(histories, Windows.of_training(histories, LENGTH), np.arange(7), CPU)
    parts = [whole.part(number, 3)[0] for number in range(3)]
    assert [len(part.items) for part in parts] == [3, 2, 2]
    assert sorted(torch.cat([part.positions for part in parts]).tolist()) == sorted(whole.positions.tolist())
    for part in parts:
        assert part.labels.tolist() == histories.items[part.positions.numpy() + 1].tolist()
        assert int(part.owned.sum()) == len(part.labels) == len(part.weights)


# Two processes


def test_two_ranks_have_the_loss_curve_of_one(tmp_path):
    asked = (*_shop(), ITEMS, _vectors(), _config(dropout=0))
    heard = []
    alone = fit_full_then_sampled(*asked, length=LENGTH, on_epoch=lambda epoch: None, checkpoint=None)[1]
    two = Torchrun(tmp_path / "ranks", 2, 1)
    epochs = two.fit(fit_full_then_sampled, *asked, length=LENGTH, checkpoint=tmp_path / "t", on_epoch=heard.append)[1]
    assert len(epochs) == 6
    for one, both in zip(alone, epochs, strict=True):
        assert both.loss == pytest.approx(one.loss, rel=1e-4)
        assert both.validation_ndcg == pytest.approx(one.validation_ndcg, abs=0.05)
    assert [epoch.loss for epoch in alone] != [epoch.loss for epoch in epochs], "these are sums of two processes"
    assert heard == epochs
    assert list(tmp_path.iterdir()) == []


def test_two_ranks_share_a_language_model_and_have_the_loss_curve_of_one(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)).save_pretrained(tmp_path / "backbone")
    knobs = {"layers": 2, "lora_rank": 2, "head_width": 16, "epochs": 3, "learning_rate": 1e-2}
    asked = (*_shop(), ITEMS, _vectors(), LmTeacherConfig(backbone=str(tmp_path / "backbone"), **knobs))
    _, alone = fit_without_dropout(*asked, length=LENGTH)
    two = Torchrun(tmp_path / "ranks", 2, 1)
    _, epochs = two.fit(fit_without_dropout, *asked, length=LENGTH, checkpoint=tmp_path / "teacher")
    assert [epoch.loss for epoch in epochs] == pytest.approx([epoch.loss for epoch in alone], rel=1e-4)
    assert epochs[-1].loss < 0.8 * epochs[0].loss


def test_ranks_of_which_one_is_killed_go_on_to_the_same_bits(tmp_path):
    asked = (*_shop(), ITEMS, _vectors(), _config(dropout=0.5))

    def trained(folder: Path, scene: Path):
        heard = []
        two = Torchrun(folder / "ranks", 2, 1)
        options = {"length": LENGTH, "checkpoint": folder / "teacher", "on_epoch": heard.append}
        model, epochs = two.fit(fit_with_a_death, *asked, scene=scene, **options)
        return model.state_dict(), epochs, heard

    tmp_path.joinpath("happened").touch()
    weights, epochs, _ = trained(tmp_path / "a", tmp_path / "happened")
    again, resumed, heard = trained(tmp_path / "b", tmp_path / "scene")
    assert (tmp_path / "scene").exists(), "a rank was killed"
    assert [epoch.loss for epoch in resumed] == [epoch.loss for epoch in epochs]
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert resumed[0] == heard[0], "the first epoch was not trained again, or it would have taken other seconds"
    assert [epoch.number for epoch in heard] == [1, 2, 3]


def test_what_the_ranks_raise_is_raised(tmp_path, monkeypatch):
    two = Torchrun(tmp_path / "ranks", 2, 1)
    with pytest.raises(LanguageModelError, match=r"^there is none \(here\)\. Bring one\.$"):
        two.fit(fit_and_refuse, checkpoint=tmp_path / "teacher")
    monkeypatch.setattr(torchrun, "RESTARTS", 0)
    with pytest.raises(TrainingError, match="the 2 processes of the training ended with exit code 1, started 1 times"):
        two.fit(fit_and_fail, checkpoint=tmp_path / "teacher")
    assert "nobody thought of this" in (tmp_path / "ranks" / "log").read_text()
