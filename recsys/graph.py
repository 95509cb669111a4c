"""A decoder as one ONNX graph, built by hand: history in, best items out. Exact on every instruction set.

    history  (B, L) int64  item codes from 1, oldest first, 0 is padding on the right; any L up to the longest
    length   (B,)   int64  how many of them are real, at least 1
    exclude  (B, X) int64  codes that must not come out, 0 is padding
    k        (1,)   int64  how many items are wanted; 0 asks for `all_scores` instead

    codes      (B, K) int64  best first, ties by the lower code; 0 where nothing is left
    scores     (B, K) float  -inf where nothing is left
    all_scores (B, N) float  column j is code j + 1; has no column while k > 0, so that nobody pays for it
    state      (B, D) float  the product with an item's row is its score: how items are ranked that came later

Built rather than exported because a library export computes the last block for every position and ships the
tied item table twice, and library quantizers leave that table alone or slow it down. Why scores are
uint8 x int8: docs/decisions/0005-integer-scoring.md. What is rounded to how many bits: docs/compression.md.
"""

from typing import Any, Literal, cast

import numpy as np
from onnx import TensorProto
from torch import Tensor

from recsys.decoder import Block, Decoder
from recsys.graph_builder import GraphBuilder
from recsys.neighbour_graph import with_neighbours
from recsys.neighbourhood import Opinion
from recsys.quantize import LEVELS, RowTable, rounded

Bits = Literal[4, 8, 32]

CHUNKS_OF = range(224, 289)
"""Scores that are searched at once in a large catalog: as many as fill it best."""
CHUNKED_FROM = 6_000
"""Up to so many items one TopK is as fast as two stages (one thread, batches of 1 and 32)."""

STATE_LEVELS = {4: 127, 8: 63}
"""Of a state on either side of zero, by the bits of the table: why not 127 for both, see `_Whole`."""
TINY = np.float32(1e-30)


def serving_graph(decoder: Decoder, bits: Bits, opinion: Opinion | None = None) -> bytes:
    """The file of `decoder` with its item table in `bits` bits, and of its neighbours; equal weights, equal bytes.

    Unless `bits` is 32 its linears and positions are in eight: the file computes with those of `rounded`.
    """
    graph = GraphBuilder()
    table = _Float(graph, decoder) if bits == 32 else _Whole(graph, decoder, bits)
    state = _last_state(graph, rounded(decoder, bits), table.vectors("history"), bits)
    if opinion is None:
        scores, unit = table.products(graph.op("Identity", state, name="state"))
    else:
        state = graph.op("Mul", state, graph.number(np.float32(1 - opinion.weight)), name="state")
        scores, unit = table.products(state)
        scores = with_neighbours(graph, opinion, scores, unit)
    _all_scores(graph, decoder.shape.items, scores, unit)
    _best(graph, decoder.shape.items, _table_rows(decoder.shape.items), scores, unit)
    return graph.serialized()


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())


def _constant(graph: GraphBuilder, name: str, rows: np.ndarray, bits: Bits, transposed: bool = False) -> str:
    """`rows` (R, C), or their transpose, as float32. Unless `bits` is 32 the file holds eight bits and a scale a row.

    onnxruntime computes what follows from constants alone once, when it loads the file: a request finds floats.
    """
    if bits == 32:
        return graph.weight(name, rows.T if transposed else rows)
    small = RowTable.of(rows, 8)
    whole, scales = (small.rows.T, small.scales) if transposed else (small.rows, small.scales[:, None])
    levels = graph.op("Cast", graph.weight(name, whole), to=TensorProto.FLOAT)
    return graph.op("Mul", levels, graph.scales(f"{name}.scales", scales))


def _table_rows(items: int) -> int:
    """Rows of the table in the file: padding first, and for a large catalog filled up to whole chunks."""
    rows = items + 1
    return rows if items <= CHUNKED_FROM else -(-rows // chunk(rows)) * chunk(rows)


def chunk(rows: int) -> int:
    """Of CHUNKS_OF the one that leaves the fewest rows to be filled up, of equals the largest."""
    return min(CHUNKS_OF, key=lambda size: (-rows % size, -size))


def _filled(rows: np.ndarray, items: int, value: float) -> np.ndarray:
    """`rows` (N + 1, ...) with rows of `value` appended up to the file's number of rows."""
    missing = _table_rows(items) - len(rows)
    return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1), constant_values=value)


class _Float:
    """The item table in float32, one initializer for input and output."""

    def __init__(self, graph: GraphBuilder, decoder: Decoder) -> None:
        table = _array(decoder.item_table())
        self.graph, self.root = graph, graph.number(np.sqrt(np.float32(decoder.shape.width)))
        self.table = graph.weight("table", _filled(table, decoder.shape.items, 0))

    def vectors(self, codes: str) -> str:
        """(B, L) -> (B, L, D), times sqrt(D) as the decoder reads them."""
        return self.graph.op("Mul", self.graph.op("Gather", self.table, codes), self.root)

    def products(self, state: str) -> tuple[str, str | None]:
        """(B, D) -> scores (B, rows), which have no unit of their own."""
        return self.graph.op("Gemm", state, self.table, transB=1), None


class _Whole:
    """The item table as whole numbers, one initializer for input and output.

    Scores are whole-number products of uint8 states and int8 rows. Beside rows of eight bits a state has seven: on a
    CPU without VNNI, onnxruntime adds two such products in 16 bits that saturate, and 2 * 127 * 127 still fits where
    2 * 255 * 127 does not (scores were wrong by up to 99 % of their range). A state has its own scale, so a user's
    scores do not depend on the batch. Four bits are two to a byte in the file; onnxruntime unpacks a constant once,
    when it loads it, so that they cost no time a request.
    """

    def __init__(self, graph: GraphBuilder, decoder: Decoder, bits: Literal[4, 8]) -> None:
        table = RowTable.of(_array(decoder.item_table()), bits)
        self.graph, self.width, self.state_levels = graph, decoder.shape.width, STATE_LEVELS[bits]
        zero = 0 if bits == 8 else LEVELS[bits] + 1  # of a row: what is packed is not negative
        rows = _filled(table.rows + np.int8(zero), decoder.shape.items, zero)
        if bits == 8:
            self.rows = graph.weight("table", rows)
        else:
            self.rows = graph.op("Cast", graph.fours("table", rows.astype(np.uint8)), to=TensorProto.INT8)
        self.scales = graph.scales("table_scales", _filled(table.scales, decoder.shape.items, 1))
        self.zero_point, self.zero = graph.number(zero, np.int8), graph.number(zero)

    def vectors(self, codes: str) -> str:
        """(B, L) -> (B, L, D), times sqrt(D) as the decoder reads them."""
        op, number = self.graph.op, self.graph.number
        whole = op("Cast", op("Gather", self.rows, codes), to=TensorProto.FLOAT)
        signed = op("Sub", whole, self.zero)
        scales = op("Mul", op("Gather", self.scales, codes), number(np.sqrt(np.float32(self.width))))
        return op("Mul", signed, op("Unsqueeze", scales, self.graph.ints(-1)))

    def products(self, state: str) -> tuple[str, str | None]:
        """(B, D) -> scores (B, rows) in units (B, 1) of each user: the order is the same, and a pass is saved."""
        op, number = self.graph.op, self.graph.number
        largest = op("ReduceMax", op("Abs", state), self.graph.ints(-1))
        unit = op("Max", op("Div", largest, number(self.state_levels)), number(TINY))
        zero_point = self.state_levels + 1
        rounded = op("Add", op("Round", op("Div", state, unit)), number(zero_point))
        whole = op("Cast", rounded, to=TensorProto.UINT8)
        # onnxruntime transposes a constant once, when it loads the file: what is stored suits Gather.
        columns = op("Transpose", self.rows, perm=[1, 0])
        product = op("MatMulInteger", whole, columns, number(zero_point, np.uint8), self.zero_point)
        return op("Mul", op("Cast", product, to=TensorProto.FLOAT), self.scales), unit


def _last_state(graph: GraphBuilder, decoder: Decoder, vectors: str, bits: Bits) -> str:
    """(B, L, D) item vectors -> (B, D): the state at each user's last item, all that scoring needs."""
    op, ints = graph.op, graph.ints
    length = op("Shape", "history", start=1, end=2)
    positions = _constant(graph, "positions", _array(decoder.positions), bits)
    x = op("Add", vectors, op("Slice", positions, ints(0), length, ints(0)))
    steps = op("Range", graph.number(0, np.int64), op("Squeeze", length), graph.number(1, np.int64))
    *blocks, last = (cast(Block, block) for block in decoder.blocks)
    # Padding is on the right, so a causal mask hides it from every real position.
    for number, block in enumerate(blocks):
        causal = _mask(graph, op("LessOrEqual", steps, op("Unsqueeze", steps, ints(1))))
        x = _BlockGraph(graph, block, f"block_{number}", bits).every_position(x, causal)
    real = _mask(graph, op("Less", steps, op("Unsqueeze", "length", ints(1))))
    state = _BlockGraph(graph, last, f"block_{len(blocks)}", bits).last_position(x, real)
    return _norm(graph, state, decoder.norm, "norm")


def _mask(graph: GraphBuilder, seen: str) -> str:
    """What is added to attention logits: 0 where `seen`, -inf elsewhere."""
    return graph.op("Where", seen, graph.number(0.0), graph.number(-np.inf))


def _norm(graph: GraphBuilder, x: str, norm: Any, name: str) -> str:
    """LayerNorm over the last axis."""
    scale = graph.weight(f"{name}.weight", _array(norm.weight))
    bias = graph.weight(f"{name}.bias", _array(norm.bias))
    return graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=norm.eps)


class _BlockGraph:
    """One block, as recsys.decoder.Block computes it; heads and feed-forward units may have been pruned."""

    def __init__(self, graph: GraphBuilder, block: Block, name: str, bits: Bits) -> None:
        self.graph, self.block, self.name, self.bits = graph, block, name, bits
        self.inner = block.heads * block.head_width
        self.qkv_weight, self.qkv_bias = _array(block.qkv.weight), _array(block.qkv.bias)
        # The scale of attention logits, 1 / sqrt(head width), is folded into the query.
        self.factor = np.ones(3 * self.inner, np.float32)
        self.factor[: self.inner] /= np.sqrt(np.float32(block.head_width))

    def every_position(self, x: str, causal: str) -> str:
        """(B, L, D) -> (B, L, D) with the causal mask (L, L)."""
        op, ints = self.graph.op, self.graph.ints
        qkv = self._linear(self._norm(x, "attention_norm"), "qkv", self.qkv_weight, self.qkv_bias, self.factor)
        query, key, value = self._by_head(qkv)  # (1, B, H, L, head width)
        weights = op("Softmax", op("Add", op("MatMul", query, self._transposed(key)), causal))
        mixed = op("Transpose", op("MatMul", weights, value), perm=[1, 3, 0, 2, 4])
        x = op("Add", x, self._module(op("Reshape", mixed, ints(0, 0, -1)), "out"))
        return self._feed_forward(x)

    def last_position(self, x: str, real: str) -> str:
        """(B, L, D) -> (B, D) with the mask of real positions (B, L).

        One query a user needs neither keys nor values of its L positions: q . (W_k x + b_k) is (q W_k) . x and what is
        the same at each position, which Softmax does not see; and the mean of values is the value of the mean. Heads
        are told apart by `own`, so that weights stay matrices: onnxruntime multiplies those alike whatever the batch.
        """
        op, ints, inner = self.graph.op, self.graph.ints, self.inner
        at = op("Unsqueeze", op("Sub", "length", self.graph.number(1, np.int64)), ints(1))
        normed = self._norm(x, "attention_norm")
        weight, bias, factor = self.qkv_weight, self.qkv_bias, self.factor[:inner]
        blocks = np.repeat(np.eye(self.block.heads, dtype=np.float32), self.block.head_width, axis=1)
        own = self.graph.weight(f"{self.name}.own", blocks)  # (H, inner)
        last = op("GatherND", normed, at, batch_dims=1)
        query = self._linear(last, "query", weight[:inner], bias[:inner], factor)
        by_head = op("Mul", op("Unsqueeze", query, ints(1)), own)
        keys = _constant(self.graph, f"{self.name}.key.weight", weight[inner : 2 * inner], self.bits)
        logits = op("MatMul", op("MatMul", by_head, keys), op("Transpose", normed, perm=[0, 2, 1]))  # (B, H, L)
        weights = op("Softmax", op("Add", logits, op("Unsqueeze", real, ints(1))))
        mean = op("MatMul", weights, normed)  # (B, H, D)
        values = self._linear(mean, "value", weight[2 * inner :], bias[2 * inner :])
        mixed = op("ReduceSum", op("Mul", values, own), ints(1), keepdims=0)
        state = op("Add", op("GatherND", x, at, batch_dims=1), self._module(mixed, "out"))
        return self._feed_forward(state)

    def _by_head(self, qkv: str) -> list[str]:
        """(B, L, 3 x heads x head width) -> query, key and value, each (1, B, H, L, head width)."""
        shape = self.graph.ints(0, 0, 3, self.block.heads, self.block.head_width)
        split = self.graph.op("Transpose", self.graph.op("Reshape", qkv, shape), perm=[2, 0, 3, 1, 4])
        names = [f"{self.name}.{part}" for part in ("query", "key", "value")]
        return self.graph.ops("Split", split, names=names, axis=0, num_outputs=3)

    def _transposed(self, key: str) -> str:
        """(..., L, head width) -> (..., head width, L)."""
        return self.graph.op("Transpose", key, perm=[0, 1, 2, 4, 3])

    def _feed_forward(self, x: str) -> str:
        """x + down(gelu(up(norm(x)))), over the last axis."""
        inner = self.graph.op("Gelu", self._module(self._norm(x, "ffn_norm"), "up"))  # exact, by erf
        return self.graph.op("Add", x, self._module(inner, "down"))

    def _norm(self, x: str, which: str) -> str:
        return _norm(self.graph, x, getattr(self.block, which), f"{self.name}.{which}")

    def _module(self, x: str, which: str) -> str:
        linear = getattr(self.block, which)
        return self._linear(x, which, _array(linear.weight), _array(linear.bias))

    def _linear(
        self, x: str, which: str, weight: np.ndarray, bias: np.ndarray, factor: np.ndarray | None = None
    ) -> str:
        """x W^T + b, for `weight` (out, in); times `factor` (out,)."""
        matrix = _constant(self.graph, f"{self.name}.{which}.weight", weight, self.bits, transposed=True)
        if factor is not None:  # of constants alone: computed once, and what is rounded are the weights themselves
            matrix = self.graph.op("Mul", matrix, self.graph.weight(f"{self.name}.{which}.factor", factor))
            bias = bias * factor
        offset = self.graph.weight(f"{self.name}.{which}.bias", bias)
        return self.graph.op("Add", self.graph.op("MatMul", x, matrix), offset)


def _all_scores(graph: GraphBuilder, items: int, scores: str, unit: str | None) -> None:
    """Every item's score, when k is 0; else the slice is empty and costs nothing."""
    op, ints = graph.op, graph.ints
    end = op("Where", op("Equal", "k", ints(0)), ints(items + 1), ints(1))
    _in_floats(graph, op("Slice", scores, ints(1), end, ints(1)), unit, "all_scores")


def _in_floats(graph: GraphBuilder, scores: str, unit: str | None, name: str) -> str:
    """Scores (B, ...) out of a user's own units."""
    return graph.op("Mul", scores, unit, name=name) if unit else graph.op("Identity", scores, name=name)


def _best(graph: GraphBuilder, items: int, rows: int, scores: str, unit: str | None) -> None:
    """The k best columns that are neither excluded nor filling; of equal scores the lower code."""
    op, ints = graph.op, graph.ints
    never = graph.weight("never", np.array([[0, *range(items + 1, rows)]], np.int64))
    # B is asked of all_scores so that they are cut first: bars may then be set in the scores themselves, not in a copy.
    batch = op("Concat", op("Shape", "all_scores", end=1), ints(1), axis=0)
    barred = op("Concat", "exclude", op("Expand", never, batch), axis=1)
    nothing = op("Expand", graph.number(-np.inf), op("Shape", barred))
    left = op("ScatterElements", scores, barred, nothing, axis=1)
    k = op("Min", "k", ints(items))
    if rows == items + 1:
        best, codes = graph.ops("TopK", left, k, names=["best_scores", "best_codes"])
    else:
        best, codes = _chunked_top_k(graph, left, k, rows, chunk(items + 1))
    _in_floats(graph, best, unit, "scores")
    op("Where", op("IsInf", best), graph.number(0, np.int64), codes, name="codes")


def _chunked_top_k(graph: GraphBuilder, scores: str, k: str, rows: int, size: int) -> tuple[str, str]:
    """Exact top-k in two stages, faster for a large catalog: the k chunks with the largest maxima hold it.

    An item outside of them has k chunks before it, by maximum and then by number, and each of those has an
    item before it, by score and then by code. The chunks are put back in order so that TopK's own rule for
    ties, the lower index, is the lower code.
    """
    op, ints, chunks = graph.op, graph.ints, rows // size
    chunked = op("Reshape", scores, ints(0, chunks, size))
    few = op("Min", k, ints(chunks))
    maxima = op("ReduceMax", chunked, ints(2), keepdims=0)
    _, chosen = graph.ops("TopK", maxima, few, names=["chunk_maxima", "best_chunks"])
    in_order, _ = graph.ops("TopK", chosen, few, names=["chunks_in_order", "chunk_ranks"], largest=0)
    picked = op("GatherND", chunked, op("Unsqueeze", in_order, ints(2)), batch_dims=1)
    flat = op("Reshape", picked, op("Concat", ints(0), op("Mul", few, ints(size)), axis=0))
    best, at = graph.ops("TopK", flat, k, names=["best_scores", "best_places"])
    number = op("GatherElements", in_order, op("Div", at, ints(size)), axis=1)
    return best, op("Add", op("Mul", number, ints(size)), op("Mod", at, ints(size)))
