"""Whatever is asked: the runtime answers as plain numpy does with the weights that are published beside the model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.sparse import csr_array
from scipy.special import erf, softmax

from recsys.artifact import WEIGHTS, Card
from recsys.decoder import Decoder, DecoderShape
from recsys.export import Publication, export
from recsys.graph import Bits
from recsys.histories import Catalog
from recsys.item_columns import Filter
from recsys.neighbourhood import FLOOR, Neighbourhood, Opinion
from recsys.runtime import TOLERANCE, Runtime

ITEMS, LENGTH, KINDS = 60, 9, 40
CASES, MATES = 40, 5  # users asked about: CASES x MATES of each artifact
COUNTS = np.resize(np.array([3, 9, 9, 0, 1, 4]), ITEMS)
SHAPES = {
    "one block, two heads": DecoderShape(ITEMS, 32, LENGTH, (2,), (64,), 16),
    "pruned, two blocks": DecoderShape(ITEMS, 16, LENGTH, (2, 1), (5, 3), 8),
}
Artifact = tuple[Runtime, "Reference"]


class Reference:
    """A user's scores from weights.safetensors and the card, one user at a time, nothing padded or batched."""

    def __init__(self, folder: Path, card: Card, length: int) -> None:
        weights = load_file(folder / WEIGHTS)
        if card.bits != 32:
            weights["table.weight"] = weights["table.rows"] * weights["table.scales"][:, None]
            for name in [
                name for name in weights if weights[name].ndim == 2 and not name.startswith(("table", "neigh"))
            ]:
                scale = np.abs(weights[name]).max(1, keepdims=True) / np.float32(127)
                weights[name] = np.rint(weights[name] / scale) * scale
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}
        self.card, self.length = card, length

    def scores(self, history: np.ndarray) -> np.ndarray:
        """(N,) of a history of whatever codes."""
        read = [int(code) for code in history if 1 <= code <= self.card.items]
        if self.card.repeats == "exclude":
            read = list(dict.fromkeys(read))
        read = read[-self.length :]
        if not read:
            return COUNTS.astype(np.float64)
        w, card = self.weights, self.card
        x = w["table.weight"][read] * card.width**0.5 + w["positions"][: len(read)]
        for number in range(card.blocks):
            x = self.block(x, number)
        scores: np.ndarray = w["table.weight"][1:] @ self.norm(x[-1], "norm")
        return self.blended(scores, read) if card.neighbours else scores

    def block(self, x: np.ndarray, number: int) -> np.ndarray:
        """(L, D) -> (L, D)."""
        name, steps, heads = f"blocks.{number}", len(x), self.card.heads[number]
        qkv = self.linear(self.norm(x, f"{name}.attention_norm"), f"{name}.qkv").reshape(steps, 3, heads, -1)
        query, key, value = qkv.transpose(1, 2, 0, 3)
        logits = query @ key.transpose(0, 2, 1) / query.shape[-1] ** 0.5
        weights = softmax(np.where(np.tri(steps, dtype=bool), logits, -np.inf), axis=-1)
        x = x + self.linear((weights @ value).transpose(1, 0, 2).reshape(steps, -1), f"{name}.out")
        inner = self.linear(self.norm(x, f"{name}.ffn_norm"), f"{name}.up")
        return x + self.linear(inner * (1 + erf(inner / 2**0.5)) / 2, f"{name}.down")

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"])

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return np.asarray(centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"])

    def blended(self, scores: np.ndarray, read: list[int]) -> np.ndarray:
        heard = np.zeros(self.card.items + 1)
        for code in set(read[-self.card.newest :]):
            near, levels = self.weights["neighbours.items"][code], self.weights["neighbours.levels"][code]
            np.add.at(heard, near.astype(int), levels * self.weights["neighbours.scales"][code])
        share = self.card.neighbours_weight
        return np.asarray((1 - share) * scores + share * np.log1p(heard[1:] / FLOOR))


def decoder(shape: DecoderShape) -> Decoder:
    """Of KINDS different item vectors only: many scores are equal."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        made = Decoder(shape, 0.0)
        for weight in made.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
        made.table.weight.data[1:] = made.table.weight.data[1 + torch.randint(KINDS, (shape.items,))]
        made.table.weight.data[0] = 0
    return made.eval()


def opinion() -> Opinion:
    """Seven neighbours of each item: no list ends in padding, where rounding would not be seen."""
    rng, near = np.random.default_rng(2), np.zeros((ITEMS, ITEMS), np.float32)
    for row in near:
        row[rng.choice(ITEMS, 7, replace=False)] = rng.uniform(0.05, 1, 7) ** 2
    return Opinion(Neighbourhood(csr_array(near), 4).as_rounded(), 0.9)


@pytest.fixture(scope="module")
def publish(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    def make(shape: str, bits: Bits, repeats: str, spoken: bool) -> Artifact:
        nothing: list[str | None] = [None] * ITEMS
        catalog = Catalog([f"item-{code}" for code in range(1, ITEMS + 1)], nothing, nothing, nothing)
        folder = tmp_path_factory.mktemp("published") / "artifact"
        publication = Publication(catalog, COUNTS, repeats, {}, opinion() if spoken else None)
        export(decoder(SHAPES[shape]), publication, bits, folder)
        runtime = Runtime.open(folder)
        return runtime, Reference(folder, runtime.card, LENGTH)

    return make


def any_codes(rng: np.random.Generator, most: int) -> np.ndarray:
    """None, some known, some of no catalog or a later one, repeats among them."""
    return rng.integers(0, ITEMS + 6, rng.integers(0, most + 1)).astype(np.int32)


def ranked(scores: np.ndarray, barred: np.ndarray, k: int) -> list[int]:
    """Codes by score, then by code, one by one."""
    out = set(barred.tolist())
    return [code for code in (np.lexsort((np.arange(ITEMS), -scores)) + 1).tolist() if code not in out][:k]


@pytest.mark.parametrize(
    ("shape", "bits", "repeats", "spoken"),
    [
        ("one block, two heads", 8, "exclude", True),
        ("one block, two heads", 4, "allow", False),
        ("pruned, two blocks", 8, "allow", True),
        ("pruned, two blocks", 4, "exclude", True),
        ("pruned, two blocks", 32, "exclude", False),
    ],
)
def test_whatever_is_asked_is_answered_as_numpy_answers(
    publish: Callable[..., Artifact], shape: str, bits: Bits, repeats: str, spoken: bool
) -> None:
    runtime, reference = publish(shape, bits, repeats, spoken)
    rng, tied = np.random.default_rng(bits), 0
    for _ in range(CASES):
        k = int(rng.integers(1, ITEMS + 8))
        histories = [any_codes(rng, 2 * LENGTH) for _ in range(MATES)]
        barred = [any_codes(rng, ITEMS if rng.random() < 0.2 else 6) for _ in range(MATES)]
        scores = runtime.scores(histories)
        codes, best = runtime.top(histories, k, barred)
        for row, history in enumerate(histories):
            expected = reference.scores(history)
            assert np.abs(scores[row] - expected).max() <= TOLERANCE[bits] * np.ptp(expected)
            listed = ranked(scores[row], barred[row], k)
            left = np.pad(listed, (0, min(k, ITEMS) - len(listed)))
            assert codes[row].tolist() == left.tolist()
            found = np.where(left > 0, scores[row][left - 1], -np.inf)
            np.testing.assert_allclose(best[row], found, rtol=0, atol=0 if bits != 32 else 1e-5)
            tied += len(set(best[row].tolist())) < len(listed)
    assert tied > CASES  # ties were asked for


@pytest.mark.parametrize(("bits", "repeats"), [(8, "exclude"), (4, "allow")])
def test_a_users_answer_depends_on_nobody_else(publish: Callable[..., Artifact], bits: Bits, repeats: str) -> None:
    runtime, _ = publish("one block, two heads", bits, repeats, True)
    rng = np.random.default_rng(10 + bits)
    for _ in range(2 * CASES):
        k = int(rng.integers(1, ITEMS + 8))
        alike = [any_codes(rng, 2 * LENGTH)] * int(rng.integers(1, 8))  # as long: they are asked in one batch
        histories = [*(rng.permutation(each) for each in alike), *(any_codes(rng, 2 * LENGTH) for _ in range(3))]
        filters = [Filter(None if rng.random() < 0.5 else any_codes(rng, 30), any_codes(rng, 6)) for _ in histories]
        together, order = runtime.serve(histories, k, filters), rng.permutation(len(histories))
        others = runtime.serve([histories[row] for row in order], k, [filters[row] for row in order])
        row = int(rng.integers(len(histories)))
        alone = runtime.serve([histories[row]], k, [filters[row]])
        place = int(np.flatnonzero(order == row)[0])
        for name, value in vars(together).items():
            assert np.array_equal(value[row], vars(alone)[name][0])
            assert np.array_equal(value[row], vars(others)[name][place])
