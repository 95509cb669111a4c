"""The hand-built ONNX graph: it scores as torch does, ranks exactly, and is the same file every time."""

import hashlib
from copy import deepcopy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy.sparse import csr_array

from recsys.decoder import Decoder, DecoderShape
from recsys.graph import CHUNKED_FROM, chunk, serving_graph
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.quantize import RowTable, packed, rounded
from recsys.recommender import top_k

LENGTH = 12
PRUNED = DecoderShape(items=30, width=16, length=LENGTH, heads=(2, 1), ffn=(5, 3), head_width=8)


def decoder(shape: DecoderShape, seed: int = 0) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Decoder(shape, 0.0)
        for parameter in made.parameters():  # norms and biases must matter, too
            parameter.data += 0.1 * torch.randn_like(parameter)
        made.table.weight.data[0] = 0
    return made.eval()


def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def requests(items: int, lengths: list[int], k: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    history = np.zeros((len(lengths), max(lengths)), np.int64)
    for row, length in enumerate(lengths):
        history[row, :length] = rng.integers(1, items + 1, length)
    exclude = np.zeros((len(lengths), 4), np.int64)
    exclude[:, :3] = rng.integers(1, items + 1, (len(lengths), 3))
    return {"history": history, "length": np.array(lengths), "exclude": exclude, "k": np.array([k])}


def torch_scores(model: Decoder, feeds: dict[str, np.ndarray], bits: int) -> np.ndarray:
    """Each request alone and unpadded, so that the graph's masks are tested against none."""
    model, table = rounded(model, bits), model.item_table().detach()
    if bits != 32:
        table = torch.from_numpy(RowTable.of(table.numpy(), bits).dequantized())
    rows = []
    with torch.inference_mode():
        for history, length in zip(feeds["history"], feeds["length"], strict=True):
            state = model.states(torch.from_numpy(history[None, :length]), table)[0, -1]
            rows.append((table[1:] @ state).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize(
    "shape",
    [DecoderShape.of(30, 16, 1, LENGTH), DecoderShape.of(30, 64, 2, LENGTH), DecoderShape.of(7, 8, 3, LENGTH), PRUNED],
    ids=["one block", "two blocks, two heads", "three blocks", "pruned"],
)
def test_it_scores_as_the_decoder_does(shape: DecoderShape, bits: int) -> None:
    model = decoder(shape)
    feeds = requests(shape.items, [1, 2, LENGTH, 5], k=0)
    expected = torch_scores(model, feeds, bits)
    found = session(serving_graph(model, bits)).run(["all_scores"], feeds)[0]
    bound = {4: 1e-2, 8: 2e-2, 32: 1e-5}[bits] * np.ptp(expected, axis=1, keepdims=True)
    assert found.shape == (4, shape.items)
    assert np.all(np.abs(found - expected) <= bound)


@pytest.mark.parametrize("length", range(1, LENGTH + 1))
def test_every_length_works(length: int) -> None:
    model = decoder(DecoderShape.of(30, 16, 2, LENGTH))
    feeds = requests(30, [length] * 2, k=0, seed=length)
    found = session(serving_graph(model, 32)).run(["all_scores"], feeds)[0]
    np.testing.assert_allclose(found, torch_scores(model, feeds, 32), rtol=0, atol=1e-4)


def test_integer_scores_are_exact_where_pairwise_int16_saturates() -> None:
    # Every element at its largest: two products of 255 * 127 would overflow 16 bits, two of 127 * 127 do not.
    shape = DecoderShape.of(40, 32, 1, LENGTH)
    model = decoder(shape)
    signs = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (shape.items, shape.width))) * 127
    model.table.weight.data[1:] = signs  # in whole numbers, with a scale of one
    model.table.weight.data[1] = 127
    model.table.weight.data[2] = -127
    model.norm.weight.data[:] = 0  # the state is the bias: all ones
    model.norm.bias.data[:] = 1
    found = session(serving_graph(model, 8)).run(["all_scores"], requests(40, [3], k=0))[0]
    assert found[0, :2].tolist() == pytest.approx([32 * 127, -32 * 127], rel=1e-6)
    np.testing.assert_allclose(found[0, 2:], signs[2:].sum(1), atol=1e-3)


def test_int8_scores_are_the_integer_product_to_the_last_digit_of_float() -> None:
    model = rounded(decoder(DecoderShape.of(500, 64, 1, LENGTH)), 8)  # rounded again it is the same
    feeds = requests(500, [LENGTH], k=0)
    table = RowTable.of(model.item_table().detach().numpy(), 8)
    with torch.inference_mode():
        state = model.states(torch.from_numpy(feeds["history"]), torch.from_numpy(table.dequantized()))[0, -1].numpy()
    scale = np.abs(state).max() / np.float32(63)
    whole = np.rint(state / scale).astype(np.int64)
    expected = (table.rows[1:].astype(np.int64) @ whole) * table.scales[1:].astype(np.float64) * scale
    found = session(serving_graph(model, 8)).run(["all_scores"], feeds)[0][0]
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_a_row_depends_on_no_other_row_and_on_no_padding(bits: int) -> None:
    graph = session(serving_graph(decoder(DecoderShape.of(50, 64, 2, LENGTH)), bits))
    feeds = requests(50, [3, LENGTH, 7, 7, 1], k=0)
    together = graph.run(["all_scores"], feeds)[0]
    for row, length in enumerate(feeds["length"]):
        alone = {
            "history": feeds["history"][row : row + 1, :length],
            "length": feeds["length"][row : row + 1],
            "exclude": feeds["exclude"][row : row + 1],
            "k": feeds["k"],
        }
        np.testing.assert_allclose(graph.run(["all_scores"], alone)[0][0], together[row], rtol=0, atol=2e-5)
    equal = {
        **feeds,
        "history": feeds["history"][2:4, :7],
        "length": feeds["length"][2:4],
        "exclude": feeds["exclude"][2:4],
    }
    one = {name: value if name == "k" else value[:1] for name, value in equal.items()}
    assert np.array_equal(graph.run(["all_scores"], equal)[0][0], graph.run(["all_scores"], one)[0][0])


def test_the_causal_mask_hides_the_future() -> None:
    # The score after 3 items may not depend on what stands in the padding behind them.
    graph = session(serving_graph(decoder(DecoderShape.of(30, 16, 2, LENGTH)), 32))
    feeds = requests(30, [3, LENGTH], k=0)
    before = graph.run(["all_scores"], feeds)[0][0]
    feeds["history"][0, 3:] = 9
    assert np.array_equal(graph.run(["all_scores"], feeds)[0][0], before)


@pytest.mark.parametrize("items", [40, CHUNKED_FROM + 300])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_the_best_are_exact_with_ties_by_the_lower_code(items: int, bits: int) -> None:
    model = decoder(DecoderShape.of(items, 8, 1, LENGTH))
    # Only 25 different vectors: nearly every score is shared, across chunks, too.
    kinds = np.random.default_rng(3).integers(0, 25, items)
    model.table.weight.data[1:] = torch.randn(25, 8, generator=torch.Generator().manual_seed(1))[kinds]
    graph = session(serving_graph(model, bits))
    for k in (1, 7, 30):
        feeds = requests(items, [2, 5, 12], k=k, seed=k)
        codes, scores, unasked, _ = graph.run(None, feeds)
        every = graph.run(["all_scores"], {**feeds, "k": np.array([0])})[0]
        for row, barred in zip(every, feeds["exclude"], strict=True):
            row[barred[barred > 0] - 1] = -np.inf
        expected_codes, expected_scores = top_k(every, k)
        assert np.array_equal(codes, expected_codes)
        assert np.array_equal(scores, expected_scores)
        assert unasked.shape == (3, 0)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_ties_go_to_the_lower_code_though_its_chunk_is_not_the_best(bits: int) -> None:
    items = CHUNKED_FROM + 300
    model = decoder(DecoderShape.of(items, 8, 1, LENGTH))
    model.norm.weight.data[:] = 0
    model.norm.bias.data[:] = 1  # the state is all ones, a score is the sum of the item's vector
    model.table.weight.data[1:] = -1
    model.table.weight.data[[700, 2_000, 5_001, 5_002]] = 1
    model.table.weight.data[5_000] = 2
    feeds = {"history": np.array([[1]]), "length": np.array([1]), "exclude": np.array([[700]]), "k": np.array([3])}
    codes, scores = session(serving_graph(model, bits)).run(["codes", "scores"], feeds)
    assert codes.tolist() == [[5_000, 2_000, 5_001]]
    assert scores[0].tolist() == pytest.approx([16, 8, 8], rel=2**-8)  # scales have sixteen bits


@pytest.mark.parametrize("items", [5, CHUNKED_FROM + 1])
def test_what_is_excluded_and_the_padding_never_come_out(items: int) -> None:
    model = decoder(DecoderShape.of(items, 8, 1, LENGTH))
    model.table.weight.data[0] = 9  # a padding row that would win
    graph = session(serving_graph(model, 32))
    left = np.array([2, items])
    exclude = np.setdiff1d(np.arange(1, items + 1), left)[None]
    feeds = {"history": np.array([[1, 3]]), "length": np.array([2]), "exclude": exclude, "k": np.array([4])}
    codes, scores = graph.run(["codes", "scores"], feeds)
    assert set(codes[0, :2]) == set(left)
    assert codes[0, 2:].tolist() == [0, 0]
    assert scores[0, 2:].tolist() == [-np.inf, -np.inf]


def test_more_items_than_there_are_gives_all_of_them() -> None:
    graph = session(serving_graph(decoder(DecoderShape.of(5, 8, 1, LENGTH)), 8))
    feeds = {
        "history": np.array([[1]]),
        "length": np.array([1]),
        "exclude": np.zeros((1, 0), np.int64),
        "k": np.array([9]),
    }
    codes, scores = graph.run(["codes", "scores"], feeds)
    assert sorted(codes[0]) == [1, 2, 3, 4, 5]
    assert np.all(np.diff(scores[0]) <= 0)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_the_file_is_one_and_the_same(bits: int) -> None:
    shape = DecoderShape.of(CHUNKED_FROM + 5, 8, 1, LENGTH)
    first, again, other = (serving_graph(decoder(shape, seed), bits) for seed in (0, 0, 1))
    assert first == again
    assert hashlib.sha256(first).digest() != hashlib.sha256(other).digest()
    model = onnx.load_from_string(first)
    names = [tensor.name for tensor in model.graph.initializer]
    columns = shape.width // 2 if bits == 4 else shape.width
    tables = [t for t in model.graph.initializer if np.prod(t.dims) >= shape.items * columns]
    assert names == sorted(names)
    (table,) = tables  # once, for both sides
    assert table.dims[1] == columns
    assert table.dims[0] % chunk(shape.items + 1) == 0
    assert 0 <= table.dims[0] - (shape.items + 1) < 10  # filled up to whole chunks
    assert (model.producer_name, model.producer_version, model.doc_string) == ("recsys", "", "")


def test_an_int8_table_is_within_half_a_step() -> None:
    table = np.array([[0, 0], [1.27, -0.635], [3e-9, 1e-9]], np.float32)
    small = RowTable.of(table, 8)
    assert small.rows.tolist() == [[0, 0], [127, -63], [127, 42]]
    np.testing.assert_allclose(small.scales, [1, 0.01, 3e-9 / 127], rtol=2**-8)
    assert not np.any(small.scales.view(np.uint32) & 0xFFFF), "sixteen bits each"
    again = RowTable.of(small.dequantized(), 8)
    assert np.array_equal(again.rows, small.rows)
    assert np.array_equal(again.scales, small.scales)
    assert np.all(np.abs(small.dequantized() - table) <= small.scales[:, None] / 2 * 1.0001)


def neighbours(items: int, keep: int, newest: int, weight: float, seed: int = 0) -> Opinion:
    rng = np.random.default_rng(seed)
    near = np.zeros((items, items), np.float32)
    for row in near[::2]:  # every other item has some
        row[rng.choice(items, keep, replace=False)] = rng.random(keep)
    return Opinion(Neighbourhood(csr_array(near), newest).as_rounded(), weight)


def blended_scores(model: Decoder, opinion: Opinion, feeds: dict[str, np.ndarray], bits: int) -> np.ndarray:
    ends = feeds["length"] - 1
    heard = opinion.neighbourhood.heard(feeds["history"], np.arange(len(ends)), ends)
    return opinion.blended(torch.from_numpy(torch_scores(model, feeds, bits)), heard).numpy()


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("newest", [1, 3, 50])
def test_with_neighbours_it_scores_as_the_blend_does(newest: int, bits: int) -> None:
    model = decoder(DecoderShape.of(30, 16, 2, LENGTH))
    opinion = neighbours(30, 5, newest, 0.6)
    feeds = requests(30, [1, 2, LENGTH, 5, LENGTH], k=0)
    feeds["history"][4] = [3, 3, 7, 3, 7, 7, 3, 1, 1, 3, 9, 3]  # the same items again and again count once
    expected = blended_scores(model, opinion, feeds, bits)
    found = session(serving_graph(model, bits, opinion)).run(["all_scores"], feeds)[0]
    bound = {4: 1e-2, 8: 2e-2, 32: 1e-5}[bits] * np.ptp(expected, axis=1, keepdims=True)
    assert np.all(np.abs(found - expected) <= bound)
    assert np.abs(expected - 0.4 * torch_scores(model, feeds, bits)).max() > 1  # the neighbours do speak


def test_with_neighbours_no_row_depends_on_another() -> None:
    graph = session(serving_graph(decoder(DecoderShape.of(30, 16, 1, LENGTH)), 8, neighbours(30, 5, 4, 0.5)))
    feeds = requests(30, [4, 4, 4], k=0)
    together = graph.run(["all_scores"], feeds)[0]
    for row in range(3):
        alone = {name: value if name == "k" else value[row : row + 1] for name, value in feeds.items()}
        assert np.array_equal(graph.run(["all_scores"], alone)[0][0], together[row])


def test_neighbours_of_a_large_catalog_are_ranked_exactly() -> None:
    items = CHUNKED_FROM + 700
    model = decoder(DecoderShape.of(items, 8, 1, LENGTH))
    some = neighbours(200, 5, 50, 0.5)
    near = some.neighbourhood.near.tocoo()
    far = csr_array((near.data, (near.coords[0], near.coords[1] + items - 200)), shape=(items, items))
    opinion = Opinion(Neighbourhood(far, 50), 0.5)
    graph = session(serving_graph(model, 8, opinion))
    feeds = requests(200, [LENGTH, 3], k=10)
    codes, scores = graph.run(["codes", "scores"], feeds)
    everything = graph.run(["all_scores"], feeds | {"k": np.array([0])})[0]
    for row, excluded in zip(everything, feeds["exclude"], strict=True):
        row[excluded[excluded > 0] - 1] = -np.inf
    expected, best = top_k(everything, 10)
    assert np.array_equal(codes, expected)
    assert np.array_equal(scores, best)
    assert (codes > items - 200).any()


def test_four_bits_are_half_the_table_in_the_file_and_unpacked_once_when_it_is_loaded(tmp_path) -> None:
    shape = DecoderShape.of(2_000, 32, 1, LENGTH)
    model = decoder(shape)
    half = len(serving_graph(model, 8)) - len(serving_graph(model, 4))
    assert half == pytest.approx(2_001 * 32 / 2, rel=0.02)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(serving_graph(model, 4), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not kinds & {"BitShift", "BitwiseAnd"}


def test_the_file_holds_the_neighbours_there_are_and_they_are_laid_out_once_when_it_is_loaded(tmp_path) -> None:
    items, model = 2_000, decoder(DecoderShape.of(2_000, 8, 1, LENGTH))
    all_ten = np.zeros((items, items), np.float32)
    all_ten[:, :10] = np.linspace(0.1, 1, 10)
    few = np.where(np.arange(items)[:, None] % 4 == 0, all_ten, 0)  # each fourth item has ten, the others none

    def of(near: np.ndarray) -> bytes:
        return serving_graph(model, 8, Opinion(Neighbourhood(csr_array(near), 50), 0.5))

    alone = len(serving_graph(model, 8))
    assert len(of(all_ten)) - len(of(few)) == pytest.approx((3 * 10 + 2) * items * 3 / 4, rel=0.01)
    assert (
        len(of(few)) - alone < ((3 * 10 + 2) / 4 + 1) * items + 5_000
    )  # of each item a count, of those who have some a scale
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(of(few), options, providers=["CPUExecutionProvider"])
    assert "CumSum" not in {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}


def linears(model: Decoder) -> dict[str, torch.nn.Parameter]:
    """And positions; not the table."""
    return {name: w for name, w in model.named_parameters() if w.ndim == 2 and name != "table.weight"}


@pytest.mark.parametrize("bits", [4, 8])
def test_linears_and_positions_are_in_eight_bits_and_score_as_their_dequantized_floats(bits: int) -> None:
    model = decoder(DecoderShape.of(300, 64, 2, LENGTH), seed=4)
    table = RowTable.of(model.item_table().detach().numpy(), bits)
    plain = deepcopy(model)  # by numpy alone: a scale a row, the largest of it 127
    for weight in linears(plain).values():
        exact = (np.abs(weight.detach().numpy()).max(1, keepdims=True) / np.float32(127)).view(np.uint32)
        scale = (exact + 0x7FFF + (exact >> 16 & 1) & 0xFFFF0000).view(np.float32)  # to the nearest of sixteen bits
        weight.data = torch.from_numpy(np.rint(weight.detach().numpy() / scale) * scale)
    feeds = requests(300, [1, 2, LENGTH, 7], k=0)
    found = session(serving_graph(model, bits)).run(["all_scores"], feeds)[0]
    for row, (history, length) in enumerate(zip(feeds["history"], feeds["length"], strict=True)):
        with torch.inference_mode():
            items = torch.from_numpy(history[None, :length])
            state = plain.states(items, torch.from_numpy(table.dequantized()))[0, -1].numpy()
        scale = np.abs(state).max() / np.float32({4: 127, 8: 63}[bits])
        expected = (
            (table.rows[1:].astype(np.int64) @ np.rint(state / scale).astype(np.int64)) * table.scales[1:] * scale
        )
        assert np.abs(found[row] - expected).max() <= 1e-4 * np.ptp(expected)
    untouched = torch_scores(model, feeds, 32)
    assert np.abs(found - untouched).max() > 1e-3 * np.ptp(untouched)  # rounding is seen


def test_the_file_is_smaller_by_three_quarters_of_its_linears_which_are_unpacked_when_it_is_loaded(tmp_path) -> None:
    model = decoder(DecoderShape.of(30, 64, 1, 50))
    table = 31 * (64 * 3 - 4)  # of four bytes an element one is left, and a scale a row comes to it
    of_floats = sum(4 * weight.numel() for weight in linears(model).values())
    saved = len(serving_graph(model, 32)) - len(serving_graph(model, 8)) - table
    assert saved == pytest.approx(0.75 * of_floats, rel=0.03)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(serving_graph(model, 8), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "optimized.onnx").graph
    whole = [list(tensor.dims) for tensor in loaded.initializer if tensor.data_type == onnx.TensorProto.INT8]
    # A request meets floats: nothing of eight bits but the table, as it is read and as it is multiplied.
    assert sorted(dims for dims in whole if dims not in ([], [1])) == [[31, 64], [64, 31]]


def test_rounding_leaves_the_decoder_and_twice_is_once() -> None:
    model = decoder(PRUNED)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    once = rounded(model, 8)
    twice = rounded(once, 4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert once.table is model.table
    for name, tensor in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], tensor, rtol=1e-6, atol=0)
    moved = [
        not torch.equal(before[name], once.state_dict()[name]) for name in linears(model) if name != "table.weight"
    ]
    assert all(moved)
    assert rounded(model, 32) is model


def test_a_width_that_is_odd_is_packed_too() -> None:
    codes = np.arange(15, dtype=np.uint8).reshape(3, 5)
    both = packed(codes)
    assert both.shape == (3, 3)
    assert np.array_equal(np.stack([both & 15, both >> 4], 2).reshape(3, -1)[:, :5], codes)


def test_in_four_bits_the_range_of_a_row_is_searched() -> None:
    """One large value must not cost all others their levels."""
    rng = np.random.default_rng(0)
    table = np.r_[np.zeros((1, 64)), rng.normal(size=(50, 64))].astype(np.float32)
    searched = RowTable.of(table, 4)
    scale = np.abs(table).max(1, keepdims=True).clip(1e-9) / 7
    whole_range = np.rint(table / scale) * scale
    assert np.abs(searched.rows).max() == 7
    assert ((searched.dequantized() - table) ** 2).sum() < 0.9 * ((whole_range - table) ** 2).sum()
    assert not searched.dequantized()[0].any()
