"""An item as the sentence a language model reads, and the vector it makes of it."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys import language_model
from recsys.config import TextConfig
from recsys.histories import Catalog

BATCH = 32
STEP = 8  # tokens: lengths are padded to a multiple of it
RANK_TOLERANCE = 1e-6  # components with less than this share of the largest variance are noise
_SEAL = b"recsys.seal"

OnProgress = Callable[[float], None]
"""Hears the share that is done, up to 1."""


def ignore(share: float) -> None:
    """Do nothing with progress."""


def sentence(title: str | None, category: str | None, description: str | None) -> str:
    """What is known of an item, a clause each, as in "Red mug. Kitchen. Holds 300 ml." Empty when nothing is."""
    parts = [" ".join((part or "").split()).rstrip(".") for part in (title, category, description)]
    return " ".join(f"{part}." for part in parts if part)


@dataclass(frozen=True)
class TextEncoder:
    """A pretrained language model that turns sentences into vectors of norm 1. Loaded when first used."""

    config: TextConfig

    @cached_property
    def folder(self) -> Path:
        """Where the model lies. Raises LanguageModelError."""
        return language_model.locate(self.config.encoder)

    def digest(self) -> str:
        """sha256 of the model's weights, configuration and tokenizer."""
        return self._digest

    def described(self) -> dict[str, str]:
        """All that a vector depends on but the text."""
        config = self.config
        return {
            "encoder": config.encoder,
            "sha256": self.digest(),
            "pooling": config.pooling,
            "max_tokens": str(config.max_tokens),
        }

    @classmethod
    def from_described(cls, reader: Mapping[str, str]) -> Self:
        """The inverse of `described`; it describes itself otherwise where the model's files have changed."""
        pooling: Any = reader["pooling"]
        return cls(TextConfig(encoder=reader["encoder"], pooling=pooling, max_tokens=int(reader["max_tokens"])))

    @cached_property
    def _digest(self) -> str:
        return language_model.digest(self.folder)

    def encode(self, sentences: Sequence[str], on_progress: OnProgress = ignore) -> np.ndarray:
        """(n, D) float32, one vector a sentence.

        A sentence's vector is the same whatever it is encoded with: batches are of one padded length, which follows
        from the sentence, and of one size, filled up with repeats.
        """
        tokenizer, model = self._loaded
        limit = self.config.max_tokens
        numbers = tokenizer(list(sentences), truncation=True, max_length=limit)["input_ids"]
        widths = np.array([-(-len(tokens) // STEP) * STEP for tokens in numbers])
        vectors = np.zeros((len(sentences), model.config.hidden_size), np.float32)
        done = 0
        for width in np.unique(widths):
            alike = np.flatnonzero(widths == width)
            for chosen in np.split(alike, range(BATCH, len(alike), BATCH)):
                filled = np.resize(chosen, BATCH)
                vectors[filled] = _pooled(model, [numbers[i] for i in filled], width, self.config.pooling)
                done += len(chosen)
                on_progress(done / len(sentences))
        return vectors

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model. Imported here: transformers takes seconds to import."""
        from transformers import AutoModel, AutoTokenizer

        from recsys.training import device

        language_model.silence()
        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        model = AutoModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
        return tokenizer, model.float().to(device()).eval()


def cached_vectors(encoder: TextEncoder, catalog: Catalog, cache: Path, on_progress: OnProgress = ignore) -> np.ndarray:
    """(N, D) float32, a row an item, zeros for an item without text. Only texts not in the folder `cache` are encoded.

    The cache is one Parquet file (text: sha256 of the sentence, vector) per language model, pooling and token limit.
    """
    columns = catalog.titles, catalog.categories, catalog.descriptions
    sentences = [sentence(*texts) for texts in zip(*columns, strict=True)]
    keys = [hashlib.sha256(text.encode()).hexdigest() if text else "" for text in sentences]
    config = encoder.config
    file = cache / f"{encoder.digest()[:16]}-{config.pooling}-{config.max_tokens}.parquet"
    known = _read(file)
    missing = {key: text for key, text in zip(keys, sentences, strict=True) if text and key not in known}
    if missing:
        encoded = encoder.encode(list(missing.values()), on_progress)
        known |= dict(zip(missing, encoded, strict=True))
        _write(file, known)
    dims = len(next(iter(known.values()), np.empty(1)))
    vectors = np.zeros((catalog.items, dims), np.float32)
    for row, key in enumerate(keys):
        if key:
            vectors[row] = known[key]
    return vectors


def whitened(vectors: np.ndarray, dims: int) -> np.ndarray:
    """(N, D) -> (N, d) float32, d <= dims: centred, the first principal components, each scaled to variance 1.

    Raw language-model vectors all point one way (their mean cosine is above 0.8) and stall a training; whitened they
    do not (WhitenRec, arXiv 2402.10602). Rows of zeros, items without text, are left out of it and stay zeros. Fewer
    than dims are kept where the texts span fewer. A component's sign is that of its largest loading.
    """
    told = np.flatnonzero(vectors.any(axis=1))
    if len(told) < 2:
        return np.zeros((len(vectors), 1), np.float32)
    centred = vectors[told].astype(np.float64)
    centred -= centred.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(told))
    variances, axes = variances[::-1], axes[:, ::-1]
    kept = min(dims, int((variances > RANK_TOLERANCE * variances[0]).sum()))
    axes = axes[:, :kept] / np.sqrt(variances[:kept])
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    result = np.zeros((len(vectors), kept), np.float32)
    result[told] = centred @ axes
    return result


def _pooled(model: Any, numbers: Sequence[Sequence[int]], width: int, pooling: str) -> np.ndarray:
    """(B, D) of B token lists, padded on the right to `width`: the mean over their tokens or the last, at norm 1."""
    import torch

    on = model.device
    tokens = torch.zeros(len(numbers), width, dtype=torch.int64)
    mask = torch.zeros(len(numbers), width, dtype=torch.int64)
    for row, values in enumerate(numbers):
        tokens[row, : len(values)] = torch.tensor(values)
        mask[row, : len(values)] = 1
    tokens, mask = tokens.to(on), mask.to(on)
    with torch.inference_mode():
        states = model(input_ids=tokens, attention_mask=mask).last_hidden_state
    if pooling == "mean":
        pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    else:
        pooled = states[torch.arange(len(numbers), device=on), mask.sum(1) - 1]
    return np.asarray(torch.nn.functional.normalize(pooled, dim=1).cpu().numpy())


def _read(file: Path) -> dict[str, np.ndarray]:
    """The cached vectors by text hash; none when the file is absent, damaged or another's: they are made anew."""
    try:
        table = pq.read_table(file, page_checksum_verification=True)
        vectors = np.stack(table.column("vector").to_numpy())
        known = dict(zip(table.column("text").to_pylist(), vectors, strict=True))
        whole = (table.schema.metadata or {}).get(_SEAL) == _seal(file.name, known)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return {}
    return known if whole else {}


def _seal(name: str, vectors: Mapping[str, np.ndarray]) -> bytes:
    """sha256 of all that a cache holds, and of its name: checksums of pages leave out what a file says of itself."""
    digest = hashlib.sha256(name.encode())
    for text, vector in vectors.items():
        digest.update(f"\n{text} {vector.dtype} {len(vector)} ".encode())
        digest.update(vector.tobytes())
    return digest.hexdigest().encode()


def _write(file: Path, vectors: dict[str, np.ndarray]) -> None:
    """Write under a temporary name of this process, then rename; two writers agree on what a text's vector is."""
    dims = len(next(iter(vectors.values())))
    fields = [("text", pa.string()), ("vector", pa.list_(pa.float32(), dims))]
    schema = pa.schema(fields, metadata={_SEAL: _seal(file.name, vectors)})
    flat = pa.array(np.concatenate(list(vectors.values())))
    columns = [pa.array(list(vectors)), pa.FixedSizeListArray.from_arrays(flat, dims)]
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    pq.write_table(pa.table(columns, schema=schema), draft, compression="zstd", write_page_checksum=True)
    os.replace(draft, file)
