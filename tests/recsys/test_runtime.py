"""What a published artifact answers, and that it takes neither torch nor trust to ask it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from recsys.artifact import Golden, write_manifest
from recsys.decoder import Decoder, DecoderShape
from recsys.errors import ArtifactError, DataError
from recsys.export import Publication, export
from recsys.graph import serving_graph
from recsys.histories import Catalog
from recsys.item_columns import Filter, ItemColumns
from recsys.recommender import top_k
from recsys.runtime import Recommendation, Runtime, _load_pyfunc
from recsys.sequence_model import Scorer
from recsys.serving_graph import ServingGraph

ITEMS = 20
LENGTH = 8
COUNTS = np.array([3, 9, 9, 0] + [1] * 16, np.int64)
SHAPE = DecoderShape.of(ITEMS, 16, 2, LENGTH)


def decoder(items: int = ITEMS, seed: int = 0) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Decoder(DecoderShape.of(items, 16, 2, LENGTH), 0.0).eval()


def publication(repeats: str, items: int = ITEMS) -> Publication:
    ids = [f"item-{code}" for code in range(1, items + 1)]
    nothing: list[str | None] = [None] * items
    return Publication(
        Catalog(ids, nothing, nothing, nothing), np.resize(COUNTS, items), repeats, {"student": "ab" * 32}
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("published")
    export(decoder(), publication("exclude"), 8, place / "exclude")
    export(decoder(), publication("allow"), 32, place / "allow")
    return {"exclude": place / "exclude", "allow": place / "allow"}


@pytest.fixture(scope="module")
def exclude(folders: dict[str, Path]) -> Runtime:
    return Runtime.open(folders["exclude"])


@pytest.fixture(scope="module")
def allow(folders: dict[str, Path]) -> Runtime:
    return Runtime.open(folders["allow"])


def codes(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_it_scores_as_the_decoder_does(allow: Runtime) -> None:
    histories = [codes(1), codes(4, 4, 2), codes(*range(1, 13)), codes(7, 8)]
    expected = Scorer(decoder(), LENGTH, "student").scores(histories)
    np.testing.assert_allclose(allow.scores(histories), expected, rtol=0, atol=1e-4)


def test_a_row_depends_on_no_other_row(exclude: Runtime) -> None:
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, ITEMS + 1, length, dtype=np.int32) for length in (1, 5, 5, 8, 3, 5, 12)]
    together = exclude.scores(histories)
    assert np.array_equal(together, np.concatenate([exclude.scores([history]) for history in histories]))
    shuffled = exclude.scores(histories[::-1])[::-1]
    assert np.array_equal(together, shuffled)


def test_top_is_the_top_of_the_scores(exclude: Runtime) -> None:
    histories = [codes(1, 2), codes(3), codes(5, 6, 7), codes()]
    barred = [codes(1, 2, 99), codes(), codes(4), codes(2)]
    scores = exclude.scores(histories)
    for row, out in zip(scores, barred, strict=True):
        row[out[out <= ITEMS] - 1] = -np.inf
    for k in (1, 5, 50):
        found = exclude.top(histories, k, barred)
        for got, expected in zip(found, top_k(scores, k), strict=True):
            assert np.array_equal(got, expected)
        assert (found[0].dtype, found[1].dtype) == (np.int32, np.float32)
    assert exclude.top(histories, 3)[0].shape == (4, 3)


def test_new_items_are_ranked_among_the_old_which_score_as_before(exclude: Runtime) -> None:
    rows = np.random.default_rng(2).normal(size=(3, SHAPE.width)).astype(np.float32)
    rows[2] = rows[0]  # a tie: the lower code comes first
    columns = ItemColumns(["new-1", "new-2", "new-3"], np.zeros(3, np.int64), categories=pa.array(["x", None, "x"]))
    more = exclude.with_items(columns, rows)
    assert (exclude.items, more.items) == (ITEMS, ITEMS + 3)
    histories = [codes(1, 2), codes(3, 22), codes(5, 6, 7), codes(21)]
    scores = more.scores(histories)
    assert np.array_equal(scores[:3, :ITEMS], exclude.scores(histories[:3]))
    states = np.concatenate([exclude.graph.states([read]) for read in (codes(1, 2), codes(3), codes(5, 6, 7))])
    assert scores[:3, ITEMS:] == pytest.approx(states @ rows.T, rel=1e-6, abs=1e-6)
    barred = [codes(1, 2, 21), codes(3, 22, 99), codes(5, 6, 7), codes(21)]
    for row, out in zip(scores, barred, strict=True):
        row[out[out <= ITEMS + 3] - 1] = -np.inf
    for k in (1, 5, 50):
        found = more.top(histories, k, barred)
        for got, expected in zip(found, top_k(scores, k), strict=True):
            assert np.array_equal(got, expected)
    served = more.serve(histories, ITEMS + 3)
    assert served.popular.tolist() == [False, False, False, True]
    assert 22 not in served.codes[1]
    only = more.serve(histories[:1], 5, [more.columns.filter(categories=["x"])])
    assert set(only.codes[0]) == {21, 23, 0}
    assert more.recommend([["item-1"]], ITEMS + 3)[0] != exclude.recommend([["item-1"]], ITEMS + 3)[0]
    with pytest.raises(DataError, match="'new-1' is in the model already"):
        more.with_items(columns, rows)


def test_a_catalog_of_many_chunks_is_ranked_alike(tmp_path: Path) -> None:
    items = 20_500
    export(decoder(items), publication("exclude", items), 8, tmp_path / "large")
    runtime = Runtime.open(tmp_path / "large")
    histories = [codes(1, 20_500, 77), codes(20_000)]
    scores = runtime.scores(histories)
    for row, history in zip(scores, histories, strict=True):
        row[history - 1] = -np.inf
    assert np.array_equal(runtime.serve(histories, 20).codes, top_k(scores, 20)[0])


def test_only_the_newest_items_are_read(allow: Runtime) -> None:
    assert np.array_equal(allow.scores([codes(*range(1, 21))]), allow.scores([codes(*range(13, 21))]))


def test_repeats_count_once_where_they_are_excluded(exclude: Runtime, allow: Runtime) -> None:
    repeated, once = codes(3, 5, 3, 7, 5), codes(3, 5, 7)
    assert np.array_equal(exclude.scores([repeated]), exclude.scores([once]))
    assert not np.allclose(allow.scores([repeated]), allow.scores([once]))


def test_seen_items_come_back_only_where_repeats_are_allowed(exclude: Runtime, allow: Runtime) -> None:
    seen = codes(*range(1, 15))  # more than are read: the oldest are excluded all the same
    assert not set(exclude.serve([seen], ITEMS).codes[0]) & set(seen)
    assert (exclude.serve([seen], ITEMS).codes[0] == 0).sum() == 14
    assert set(allow.serve([seen], ITEMS).codes[0]) == set(range(1, ITEMS + 1))


def test_later_items_are_unknown_and_passed_over(exclude: Runtime) -> None:
    assert np.array_equal(exclude.scores([codes(1, 21, 2, 400)]), exclude.scores([codes(1, 2)]))


def test_recommend_speaks_item_ids(exclude: Runtime) -> None:
    (answer,) = exclude.recommend([["item-4", "never heard of", "item-6"]], k=3)
    served = exclude.serve([codes(4, 6)], 3)
    assert [item.item_id for item in answer] == [f"item-{code}" for code in served.codes[0]]
    assert [item.score for item in answer] == served.scores[0].tolist()
    assert {item.source for item in answer} == {"model"}


@pytest.mark.parametrize("history", [[], ["never heard of", "nor of this"]])
def test_without_a_known_item_the_most_popular_are_recommended(exclude: Runtime, history: list[str]) -> None:
    answers = exclude.recommend([history, ["item-2"]], k=3)
    assert answers[0] == [
        Recommendation("item-2", 9.0, "popular"),
        Recommendation("item-3", 9.0, "popular"),
        Recommendation("item-1", 3.0, "popular"),
    ]
    assert answers[1][0].source == "model"


def test_fewer_than_k_are_given_where_fewer_are_left(exclude: Runtime) -> None:
    (answer,) = exclude.recommend([[f"item-{code}" for code in range(1, 19)]], k=10)
    assert sorted(item.item_id for item in answer) == ["item-19", "item-20"]
    assert exclude.recommend([[f"item-{code}" for code in range(1, 21)]], k=10) == [[]]
    assert exclude.recommend([], k=10) == []


def filtered_by_numpy(runtime: Runtime, history: np.ndarray, k: int, chosen: Filter) -> tuple[list[int], list[float]]:
    """The reference: every item in order of score, ties by the lower code, one by one through the filter."""
    scores = runtime.scores([history])[0]
    barred = {*chosen.denied.tolist(), *(history.tolist() if runtime.card.repeats == "exclude" else [])}
    allowed = None if chosen.allowed is None else set(chosen.allowed.tolist())
    ranked = [code + 1 for code in np.lexsort((np.arange(runtime.items), -scores))]
    kept = [code for code in ranked if code not in barred and (allowed is None or code in allowed)][:k]
    return kept, [float(scores[code - 1]) for code in kept]


@pytest.mark.parametrize("repeats", ["exclude", "allow"])
def test_filters_are_those_of_a_plain_reference(folders: dict[str, Path], repeats: str) -> None:
    runtime, rng = Runtime.open(folders[repeats]), np.random.default_rng(5)
    histories, filters = [], []
    for _ in range(200):
        drawn = [rng.integers(1, ITEMS + 3, rng.integers(0, 12)).astype(np.int32) for _ in range(3)]
        histories.append(drawn[0])
        filters.append(Filter(None if rng.random() < 0.4 else drawn[1], drawn[2]))
    for k in (1, 4, 50):
        together = runtime.serve(histories, k, filters)
        for row, (history, chosen) in enumerate(zip(histories, filters, strict=True)):
            expected_codes, expected_scores = filtered_by_numpy(runtime, history, k, chosen)
            some = together.codes[row] > 0
            assert together.codes[row][some].tolist() == expected_codes
            assert together.scores[row][some].tolist() == expected_scores
            assert not some[len(expected_codes) :].any()
            assert together.popular[row] == (not ((history >= 1) & (history <= ITEMS)).any())
            alone = runtime.serve([history], k, [chosen])
            assert np.array_equal(alone.codes[0], together.codes[row])
            assert np.array_equal(alone.scores[0], together.scores[row])


def test_ties_among_filtered_items_go_to_the_lower_code(exclude: Runtime) -> None:
    served = exclude.serve([codes(), codes()], 3, [Filter(codes(9, 5, 7, 6)), Filter(codes(3, 2))])
    assert served.codes.tolist() == [[5, 6, 7], [2, 3, 0]]
    assert served.scores[1].tolist() == [9.0, 9.0, -np.inf]


def test_filters_of_nothing_change_nothing(exclude: Runtime) -> None:
    histories = [codes(1, 2), codes(), codes(5, 6, 7)]
    plain, filtered = exclude.serve(histories, 4), exclude.serve(histories, 4, [Filter()] * 3)
    assert all(np.array_equal(a, b) for a, b in zip(vars(plain).values(), vars(filtered).values(), strict=True))
    assert exclude.serve([], 4, []).codes.shape == (0, 4)


def test_a_large_catalog_is_filtered_like_a_small_one(tmp_path: Path) -> None:
    items = 20_500
    export(decoder(items), publication("exclude", items), 8, tmp_path / "large")
    runtime, allowed = Runtime.open(tmp_path / "large"), np.arange(3, items + 1, 7, dtype=np.int32)
    served = runtime.serve([codes(1, 20_500)], 20, [Filter(allowed, allowed[::50])])
    assert (
        served.codes[0].tolist() == filtered_by_numpy(runtime, codes(1, 20_500), 20, Filter(allowed, allowed[::50]))[0]
    )


def test_categories_are_whole_texts_and_their_parts() -> None:
    columns = ItemColumns(
        ["a", "b", "c", "d", "e"], np.ones(5, np.int64), pa.nulls(5, pa.string()),
        pa.array(["Drama", "Comedy|Drama", None, " Comedy | Film Noir", "Drama"]),
    )  # fmt: skip
    found = {name: listed.tolist() for name, listed in columns.codes_of_category.items()}
    assert found == {
        "Drama": [1, 2, 5], "Comedy|Drama": [2], "Comedy": [2, 4], " Comedy | Film Noir": [4], "Film Noir": [4],
    }  # fmt: skip
    assert columns.filter(categories=["Drama", "Comedy"]).allowed.tolist() == [1, 2, 4, 5]
    assert columns.filter(allow=["e", "c", "?"], categories=["Drama"]).allowed.tolist() == [5]
    assert columns.filter(allow=["e", "a"]).allowed.tolist() == [5, 1]
    assert columns.filter(categories=[]).allowed.tolist() == []
    assert columns.filter(exclude=["b", "?"]).denied.tolist() == [2]
    with pytest.raises(DataError, match="knows no category 'Horror'; there are 5"):
        columns.filter(categories=["Horror"])


def test_the_same_question_has_the_same_answer(exclude: Runtime, folders: dict[str, Path]) -> None:
    questions = [["item-1"], ["item-9", "item-2"], []]
    assert exclude.recommend(questions) == Runtime.open(folders["exclude"], threads=2).recommend(questions)


def test_golden_requests_are_answered_as_they_were(exclude: Runtime, allow: Runtime) -> None:
    exclude.check_golden()
    allow.check_golden()
    assert [len(history) for history in exclude.golden.histories] == [1, 2, 3, 5, 8]
    assert all(len(listed) == 10 for listed in allow.golden.codes)


@pytest.mark.parametrize("repeats", ["exclude", "allow"])
def test_another_model_fails_the_golden_requests(folders: dict[str, Path], tmp_path: Path, repeats: str) -> None:
    raw = (folders[repeats] / "golden.json").read_bytes()
    runtime = Runtime.open(folders[repeats])
    other = ServingGraph(serving_graph(decoder(seed=1), runtime.card.bits))
    changed = Runtime(other, runtime.card, _items(runtime), Golden.from_bytes(raw))
    with pytest.raises(ArtifactError, match="golden request 1 is answered otherwise"):
        changed.check_golden()


def test_two_near_items_may_have_changed_places(exclude: Runtime) -> None:
    scores = exclude.scores([codes(3)])[0]
    near = 0.001 * np.ptp(scores)
    listed = exclude.serve([codes(3)], 2)
    first, second = listed.codes[0].tolist()
    golden = Golden([[3]], [[first, second]], [(listed.scores[0] - near).tolist()])
    Runtime(exclude.graph, exclude.card, _items(exclude), golden).check_golden()
    far = Golden([[3]], [[first, second]], [(listed.scores[0] - 40 * near).tolist()])
    with pytest.raises(ArtifactError, match="golden request 1"):
        Runtime(exclude.graph, exclude.card, _items(exclude), far).check_golden()


def _items(runtime: Runtime) -> ItemColumns:
    return ItemColumns(runtime.item_ids, COUNTS)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("model.onnx", b"\x08\x0a nonsense", "onnxruntime cannot load model.onnx"),
        ("items.parquet", b"PAR1 nonsense PAR1", "items.parquet cannot be read"),
        ("card.json", b"{}", "card.json is not a card of format 1"),
        ("golden.json", b"{}", "golden.json does not hold golden requests"),
    ],
)
def test_a_file_that_does_not_parse_is_named(
    folders: dict[str, Path], tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    for file in folders["exclude"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(raw)
    write_manifest(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        Runtime.open(tmp_path)


def test_a_graph_of_another_kind_is_refused() -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    ])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ArtifactError, match="reads and gives x, y"):
        ServingGraph(model.SerializeToString())


def test_serving_needs_no_torch(folders: dict[str, Path]) -> None:
    program = """
import json, sys
from pathlib import Path
from recsys.runtime import Runtime
runtime = Runtime.open(Path(sys.argv[1]))
runtime.check_golden()
answer = runtime.recommend([["item-4"], []], 2)
heavy = [name for name in ("torch", "onnx", "pandas", "prefect", "mlflow", "pydantic", "scipy") if name in sys.modules]
print(json.dumps([heavy, [item.item_id for item in answer[0]]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folders["exclude"])], check=True, capture_output=True, text=True
    )
    heavy, answer = json.loads(done.stdout)
    assert heavy == []
    assert answer == [item.item_id for item in Runtime.open(folders["exclude"]).recommend([["item-4"]], 2)[0]]


def test_pyfunc_answers_a_frame(folders: dict[str, Path]) -> None:
    model = _load_pyfunc(str(folders["exclude"]))
    frame = pd.DataFrame({"history": [["item-4"], [], None, np.array(["item-1", "?"])]}, index=[7, 8, 9, 10])
    answer = model.predict(frame, params={"k": 2})
    assert list(answer.columns) == ["item_ids", "scores", "sources"]
    assert list(answer.index) == [7, 8, 9, 10]
    assert answer["sources"].tolist() == [["model"] * 2, ["popular"] * 2, ["popular"] * 2, ["model"] * 2]
    expected = model.runtime.recommend([["item-4"]], 2)[0]
    assert answer["item_ids"][7] == [item.item_id for item in expected]
    assert answer["scores"][7] == [item.score for item in expected]
    assert len(model.predict(frame)["item_ids"][7]) == 10


@pytest.mark.parametrize(
    ("frame", "params", "message"),
    [
        (pd.DataFrame({"user": ["a"]}), None, "the input has no column history"),
        (["item-1"], None, "the input has no column history"),
        (pd.DataFrame({"history": ["item-1"]}), None, "a history is 'item-1'"),
        (pd.DataFrame({"history": [3]}), None, "a history is 3"),
        (pd.DataFrame({"history": [["item-1"]]}), {"k": 0}, "k is 0"),
    ],
)
def test_pyfunc_refuses_another_input(folders: dict[str, Path], frame: object, params: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load_pyfunc(str(folders["exclude"])).predict(frame, params)


MLFLOW_PROGRAM = """
import json, os, sys
import mlflow, pandas as pd
from mlflow.models import infer_signature
from pathlib import Path
from recsys.runtime import Runtime

folder, home = sys.argv[1:]
mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
mlflow.set_experiment(experiment_id=mlflow.create_experiment("night", artifact_location=f"file://{home}/artifacts"))
example = pd.DataFrame({"history": [["item-1", "item-2"]]})
answer = pd.DataFrame({"item_ids": [["item-3"]], "scores": [[0.5]], "sources": [["model"]]})
with mlflow.start_run():
    logged = mlflow.pyfunc.log_model(
        name="student", loader_module="recsys.runtime", data_path=folder,
        signature=infer_signature(example, answer, params={"k": 10}), input_example=(example, {"k": 10}),
        pip_requirements=["recsys-factory"], registered_model_name="recsys-student",
    )
loaded = mlflow.pyfunc.load_model(f"models:/recsys-student/{logged.registered_model_version}")
got = loaded.predict(pd.DataFrame({"history": [["item-4", "item-6"], ["?"]]}), params={"k": 3})
kept = sorted(p.name for p in Path(mlflow.artifacts.download_artifacts(logged.model_uri)).rglob("*") if p.is_file())
print(json.dumps({"answer": got.to_dict("list"), "kept": kept}))
"""


def test_it_is_an_mlflow_model_that_holds_data_only(folders: dict[str, Path], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", MLFLOW_PROGRAM, str(folders["exclude"]), str(tmp_path)],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    expected = Runtime.open(folders["exclude"]).recommend([["item-4", "item-6"], ["?"]], 3)
    assert found["answer"]["item_ids"] == [[item.item_id for item in answer] for answer in expected]
    assert found["answer"]["sources"] == [["model"] * 3, ["popular"] * 3]
    assert not [
        name for name in found["kept"] if Path(name).suffix in (".py", ".pkl", ".pickle", ".pt", ".pth", ".bin")
    ]
