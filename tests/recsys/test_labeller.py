"""A teacher in eight bits labels nearly as the teacher does, and how nearly is measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.decoder import DecoderShape
from recsys.ensemble import Ensemble
from recsys.histories import Histories
from recsys.labeller import agreement, labeller
from recsys.lm_teacher import LmShape, LmTeacher
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.quantize import RowTable
from recsys.soft_labels import Positions
from recsys.teacher import Teacher
from recsys.teachers import BlendedTeacher

ITEMS, LENGTH = 40, 8


def positions() -> Positions:
    """Of thirty users with 3 to 30 events."""
    rng = np.random.default_rng(0)
    users = [rng.integers(1, ITEMS + 1, rng.integers(3, 31)).astype(np.int32) for _ in range(30)]
    lengths = np.array([len(items) for items in users], np.int32)
    flat = np.concatenate(users)
    histories = Histories(
        tokens=np.array([f"{user:032d}".encode() for user in range(30)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=flat,
        times=np.arange(len(flat)),
        weights=np.ones(len(flat), np.float32),
        train_end=lengths,
        valid_end=lengths,
    )
    return Positions.of(histories, LENGTH)


def small(width: int = 16) -> Teacher:
    vectors = np.random.default_rng(width).standard_normal((ITEMS, 5)).astype(np.float32)
    return Teacher(DecoderShape.of(ITEMS, width, 1, LENGTH), vectors, dropout=0.3).eval()


def language_model(folder) -> LmTeacher:
    """Of a tiny random backbone, with adapters that do something."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from recsys import language_model as files

    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    Qwen2ForCausalLM(Qwen2Config(**sizes)).save_pretrained(folder)
    digest = files.digest(files.locate(str(folder)))
    teacher = LmTeacher(LmShape(ITEMS, LENGTH, str(folder), digest, 2, 2, 16), None).eval()
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    return teacher


@pytest.fixture(params=["decoder", "ensemble", "language model"])
def teacher(request, tmp_path) -> BlendedTeacher:
    torch.manual_seed(0)
    made = {"decoder": small, "ensemble": lambda: Ensemble([small(16), small(24)]).eval(),
            "language model": lambda: language_model(tmp_path)}  # fmt: skip
    neighbours = Neighbourhood.of_training(positions().histories, ITEMS, 5, 20)
    return BlendedTeacher(made[request.param](), Opinion(neighbours, 0.3))


def test_in_eight_bits_it_says_nearly_the_same_and_the_teacher_is_left_as_it_was(teacher):
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    made, at = labeller(teacher, 8), positions()
    found = agreement(teacher, made, at, k=10)
    assert found.positions == len(at.at)
    assert 0 < found.kl < 5e-3
    assert found.same_first > 0.9
    assert 0.9 < found.shared_top < 1
    assert found.float_seconds > 0 < found.rounded_seconds
    assert made.opinion is teacher.opinion
    after = teacher.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_its_table_holds_whole_numbers_a_row(teacher):
    if isinstance(teacher.model, Ensemble):
        teacher = BlendedTeacher(teacher.model.teachers[0])
    table = labeller(teacher, 8).model.item_table().detach().numpy()
    np.testing.assert_allclose(RowTable.of(table, 8).dequantized(), table, rtol=1e-6)
    assert not np.allclose(teacher.model.item_table().detach().numpy(), table, rtol=1e-6)


def test_in_thirty_two_bits_it_is_the_teacher_itself_and_agrees_with_itself():
    torch.manual_seed(0)
    teacher = BlendedTeacher(small())
    assert labeller(teacher, 32) is teacher
    found = agreement(teacher, teacher, positions(), k=10, most=50)
    assert (found.same_first, found.shared_top, found.kl) == (1, 1, 0)
    assert 30 < found.positions <= 50
    assert str(replace(found, positions=50, float_seconds=0.25, rounded_seconds=0.125)) == (
        "the teacher in 8 bits: the same best item at 100.0% of 50 positions, 100.0% of the ten best, KL 0.0e+00 nats; "
        "0.125 s a thousand positions, 0.250 s in float"
    )
