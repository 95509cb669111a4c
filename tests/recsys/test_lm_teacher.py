"""A language model as backbone: tiny random Qwen2 and Llama models, cut, tuned with LoRA, saved and read back."""

import json
import pickle
from concurrent.futures import Executor, Future

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recsys.config import LabelsConfig, LmTeacherConfig
from recsys.errors import LanguageModelError
from recsys.histories import Cases, Histories
from recsys.labeller import labeller
from recsys.lm_teacher import LmTeacher, fit_lm_teacher
from recsys.soft_labels import LABELS, Labelling, Positions, write_segment
from recsys.spread import HERE
from recsys.teachers import BlendedTeacher, load_teacher
from recsys.training import Scorer

ITEMS, LENGTH = 12, 6
SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _write(kind: str, folder, seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config, model = {"qwen": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[kind]
    torch.manual_seed(seed)
    model(config(**SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["qwen", "llama"])
def backbone(request, tmp_path_factory):
    return _write(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def fitted(backbone):
    """A trained teacher, its epochs, and the folder of its backbone."""
    histories, cases = _shop()
    vectors = np.random.default_rng(0).standard_normal((ITEMS, 5)).astype(np.float32)
    teacher, epochs = fit_lm_teacher(histories, cases, ITEMS, vectors, _config(backbone), length=LENGTH)
    return teacher, epochs, backbone


def _config(backbone, **knobs) -> LmTeacherConfig:
    values = {"layers": 2, "lora_rank": 2, "head_width": 16, "epochs": 4, "learning_rate": 1e-2}
    return LmTeacherConfig(backbone=str(backbone), **{**values, **knobs})


def _shop(users: int = 60, length: int = 6) -> tuple[Histories, Cases]:
    """Everybody walks round a ring of items from a place of their own."""
    starts = np.random.default_rng(0).integers(ITEMS, size=users)
    items = ((starts[:, None] + np.arange(length)) % ITEMS + 1).astype(np.int32)
    ends = np.full(users, length - 1, np.int32)
    histories = Histories(
        tokens=np.array([f"{user:032x}" for user in range(users)], "S32"),
        offsets=np.arange(users + 1, dtype=np.int64) * length,
        items=items.ravel(),
        times=np.tile(np.arange(length, dtype=np.int64), users),
        weights=np.ones(users * length, np.float32),
        train_end=ends,
        valid_end=ends + 1,
    )
    return histories, Cases(np.arange(users), list(items[:, :-1]), list(items[:, -1:]), exclude_seen=False)


def test_the_loss_falls(fitted):
    _, epochs, _ = fitted
    assert epochs[-1].loss < 0.8 * epochs[0].loss
    assert epochs[-1].validation_ndcg > 0.5


def test_it_is_cut_and_only_adapters_and_the_ways_in_and_out_are_trained(fitted):
    teacher, _, _ = fitted
    assert len(teacher.backbone.layers) == 2
    trained = {name for name, p in teacher.named_parameters() if p.requires_grad}
    outside = {name for name in trained if not name.startswith("backbone.")}
    assert outside == {
        *("table.weight", "text.projection.weight", "read.weight", "read.bias"),
        *("head.weight", "head.bias", "norm.weight", "norm.bias"),
    }
    inside = {name.split(".", 3)[3] for name in trained - outside}  # after backbone.layers.<number>.
    assert inside == {f"self_attn.{p}_proj.lora_{half}.default.weight" for p in "qkvo" for half in "AB"}


def test_adapters_change_and_the_language_model_does_not(fitted):
    teacher, _, backbone = fitted
    before = load_file(backbone / "model.safetensors")
    after = dict(teacher.backbone.named_parameters())
    kept = {name: p for name, p in after.items() if "lora_" not in name}
    assert len(kept) > 15
    for name, parameter in kept.items():
        assert torch.equal(parameter, before[f"model.{name.replace('.base_layer', '')}"]), name
    assert all(p.abs().max() > 1e-3 for name, p in after.items() if "lora_B" in name)  # they start at zero


def test_saved_and_loaded_it_scores_the_same(fitted, tmp_path):
    teacher, _, _ = fitted
    teacher.save(tmp_path)
    loaded = load_teacher(tmp_path)
    assert isinstance(loaded.model, LmTeacher)
    assert (loaded.items, loaded.length) == (ITEMS, LENGTH)
    histories = [np.array([1, 2, 3], np.int32), np.array([12], np.int32)]
    assert np.array_equal(Scorer(teacher, LENGTH, "saved").scores(histories), loaded.scorer("loaded").scores(histories))


def test_the_backbone_is_not_copied(fitted, tmp_path):
    teacher, _, _ = fitted
    teacher.save(tmp_path)
    saved = load_file(tmp_path / "teacher.safetensors")
    assert not [name for name in saved if "base_layer" in name or "mlp" in name]
    assert saved["table.weight"].shape == (ITEMS + 1, 16)
    assert json.loads((tmp_path / "teacher.json").read_text())["kind"] == "language_model"


def test_a_row_does_not_depend_on_its_batch_mates(fitted):
    teacher, _, _ = fitted
    scorer = Scorer(teacher, LENGTH, "teacher")
    histories = [np.array(h, np.int32) for h in ([5], [1, 2, 3, 4, 5, 6], [9, 10])]
    together = scorer.scores(histories)
    alone = np.concatenate([scorer.scores([history]) for history in histories])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)


def test_a_run_killed_after_an_epoch_goes_on_to_the_same_scores(backbone, tmp_path):
    histories, cases = _shop()

    def run(**options):
        config = _config(backbone, epochs=2)
        teacher, _ = fit_lm_teacher(histories, cases, ITEMS, None, config, length=LENGTH, **options)
        return Scorer(teacher, LENGTH, "teacher").scores([np.array([1, 2, 3], np.int32)])

    def kill(epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_epoch=kill, checkpoint=tmp_path / "checkpoint")
    assert np.array_equal(run(checkpoint=tmp_path / "checkpoint"), run())


def test_another_backbone_is_refused(tmp_path):
    folder = _write("qwen", tmp_path / "model")
    histories, cases = _shop(users=4)
    teacher, _ = fit_lm_teacher(histories, cases, ITEMS, None, _config(folder, epochs=1), length=LENGTH)
    (tmp_path / "teacher").mkdir()
    teacher.save(tmp_path / "teacher")
    _write("qwen", folder, seed=1)
    with pytest.raises(LanguageModelError, match="not the one this teacher was trained on"):
        load_teacher(tmp_path / "teacher")


@pytest.mark.parametrize(
    ("knobs", "length", "message"),
    [({"layers": 9}, LENGTH, "9 layers are asked for and it has 3"), ({}, 100, "it reads 64 positions, not 100")],
)
def test_knobs_that_do_not_fit_are_refused(backbone, knobs, length, message):
    histories, cases = _shop(users=4)
    with pytest.raises(LanguageModelError, match=message):
        fit_lm_teacher(histories, cases, ITEMS, None, _config(backbone, **knobs), length=length)


def test_a_model_without_the_projections_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)).save_pretrained(tmp_path)
    histories, cases = _shop(users=4)
    with pytest.raises(LanguageModelError, match="it has no layers with q_proj"):
        fit_lm_teacher(histories, cases, ITEMS, None, _config(tmp_path), length=LENGTH)


class Crossing(Executor):
    """As if each part went to another process and its result came back."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        call, args, kwargs = pickle.loads(pickle.dumps((fn, args, kwargs), protocol=5))
        future: Future = Future()
        future.set_result(pickle.loads(pickle.dumps(call(*args, **kwargs))))
        return future


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # of torch.ao, which pickles so
def test_its_labels_are_the_same_to_the_byte_when_it_crosses_to_another_process(fitted, tmp_path, bits):
    model = labeller(BlendedTeacher(fitted[0], None), bits).model
    positions = Positions.of(_shop()[0], LENGTH)
    labelling = Labelling.of("teacher", ITEMS, [str(item) for item in range(ITEMS)], LabelsConfig(top_k=5))
    for name, executor in (("here", HERE), ("there", Crossing())):
        write_segment(model, labelling, positions, [], tmp_path / name, executor=executor)
    assert (tmp_path / "here" / LABELS).read_bytes() == (tmp_path / "there" / LABELS).read_bytes()
