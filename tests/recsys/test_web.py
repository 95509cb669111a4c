"""The web app: what it answers, what it refuses and how, and that one answer is of one model."""

import gc
import json
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from recsys.decoder import Decoder, DecoderShape
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.runtime import Runtime
from recsys.served_model import ServedModel, Standing
from recsys.web import LARGEST_BODY, app_of
from recsys.web_messages import MOST_ANSWERED

ITEMS = 30
KINDS = ["lamp", "mug", "lamp|mug"]


def write_artifact(out: Path, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = Decoder(DecoderShape.of(ITEMS, 16, 2, 8), 0.0).eval()
    ids = [f"item-{code}" for code in range(1, ITEMS + 1)]
    titles: list[str | None] = [f"Thing {code}" for code in range(1, ITEMS)] + [None]
    kinds: list[str | None] = [KINDS[code % 3] for code in range(ITEMS - 1)] + [None]
    catalog = Catalog(ids, titles, kinds, [None] * ITEMS)
    export(decoder, Publication(catalog, np.arange(ITEMS, 0, -1), "exclude", {"student": "ab" * 32}), 8, out)
    return out


class Shelf:
    """A source whose model is put there by hand."""

    def __init__(self, model: ServedModel | None = None) -> None:
        self.model = model
        self.swaps = 0

    def current(self) -> ServedModel | None:
        return self.model

    def standing(self) -> Standing:
        return Standing("current", "it is the champion", time.time() - 3, self.swaps, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("published")
    return [write_artifact(place / str(seed), seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def runtime(folders: list[Path]) -> Runtime:
    return Runtime.open(folders[0])


def served(runtime: Runtime, version: int = 7) -> ServedModel:
    return ServedModel(runtime, version, "cd" * 32, 1_700_000_000, 1_700_000_100.0)


@pytest.fixture
def client(runtime: Runtime) -> TestClient:
    return TestClient(app_of(Shelf(served(runtime))))


def ids(reply: object) -> list[str]:
    return [item["item_id"] for item in reply.json()["items"]]


def test_an_answer_is_the_runtimes_and_names_its_model(client: TestClient, runtime: Runtime) -> None:
    reply = client.post("/recommend", json={"history": ["item-4"], "session": ["item-6", "never heard of"], "k": 5})
    assert reply.status_code == 200
    (expected,) = runtime.recommend([["item-4", "item-6"]], 5)
    assert [(i["item_id"], i["score"], i["source"]) for i in reply.json()["items"]] == [tuple(e) for e in expected]
    assert reply.json()["model"] == {"version": 7, "digest": "cd" * 32, "as_of": "2023-11-14T22:13:20+00:00"}
    assert reply.json()["reason"] is None
    assert reply.json()["items"][0]["title"] == f"Thing {ids(reply)[0].removeprefix('item-')}"


def test_session_events_change_the_answer(client: TestClient) -> None:
    before = client.post("/recommend", json={"history": ["item-4"]})
    after = client.post("/recommend", json={"history": ["item-4"], "session": ["item-9"]})
    assert ids(before) != ids(after)
    assert "item-9" not in ids(after), "what was just taken is not recommended again"


@pytest.mark.parametrize("body", [{}, {"history": []}, {"history": ["never heard of"]}])
def test_nothing_known_is_answered_by_popularity_and_filtered_alike(client: TestClient, body: dict) -> None:
    reply = client.post("/recommend", json={**body, "k": 3, "exclude": ["item-1"], "categories": ["lamp"]})
    assert ids(reply) == ["item-3", "item-4", "item-6"]
    assert {item["source"] for item in reply.json()["items"]} == {"popular"}


def test_filters_narrow_the_answer(client: TestClient) -> None:
    allowed = ["item-3", "item-5", "item-8", "never heard of"]
    reply = client.post("/recommend", json={"history": ["item-4"], "allow": allowed})
    assert sorted(ids(reply)) == ["item-3", "item-5", "item-8"]
    reply = client.post("/recommend", json={"history": ["item-4"], "allow": allowed, "exclude": ["item-5"]})
    assert sorted(ids(reply)) == ["item-3", "item-8"]
    reply = client.post("/recommend", json={"history": ["item-4"], "allow": allowed, "categories": ["lamp|mug"]})
    assert ids(reply) == ["item-3"]
    whole = client.post("/recommend", json={"history": ["item-4"], "k": ITEMS})
    mugs = client.post("/recommend", json={"history": ["item-4"], "k": ITEMS, "categories": ["mug"]})
    assert ids(mugs) == [i for i in ids(whole) if int(i.removeprefix("item-")) % 3 != 1 and i != "item-30"]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"allow": []}, "no item that the model knows passes"),
        ({"allow": ["item-1"], "categories": ["mug"]}, "no item that the model knows passes"),
        ({"allow": ["item-4"]}, "excluded or in the history already"),
        ({"exclude": [f"item-{code}" for code in range(1, ITEMS + 1)]}, "excluded or in the history already"),
    ],
)
def test_an_empty_answer_says_why(client: TestClient, limits: dict, reason: str) -> None:
    reply = client.post("/recommend", json={"history": ["item-4"], **limits})
    assert (reply.status_code, reply.json()["items"]) == (200, [])
    assert reason in reply.json()["reason"]


def test_a_batch_is_answered_as_each_would_be_alone(client: TestClient) -> None:
    questions = [
        {"history": ["item-4"], "k": 3},
        {"history": ["item-4", "item-9"], "k": 12, "categories": ["lamp"]},
        {"history": []},
        {"history": ["item-2"], "exclude": ["item-5", "item-6"], "k": 30},
    ]
    reply = client.post("/recommend/batch", json={"requests": questions})
    assert reply.status_code == 200
    alone = [client.post("/recommend", json=question).json() for question in questions]
    assert [row["items"] for row in reply.json()["answers"]] == [each["items"] for each in alone]
    assert reply.json()["model"] == alone[0]["model"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"k": 0}', "k: Input should be greater than or equal to 1"),
        (b'{"k": 1001}', "k: Input should be less than or equal to 1000"),
        (b'{"k": NaN}', "k: Input should be a finite number"),
        (b'{"k": 1e999}', "k: Input should be a finite number"),
        (b'{"k": "many"}', "k: Input should be a valid integer"),
        (b'{"history": "item-1"}', "history: Input should be a valid list"),
        (b'{"history": [1]}', "history.0: Input should be a valid string"),
        (b'{"history": [null]}', "history.0: Input should be a valid string"),
        (b'{"history": [""]}', "history.0: String should have at least 1 character"),
        (b'{"history": ["\\ud800"]}', "history.0: Input should be a valid string"),
        (b'{"\\ud800": 1}', "unable to parse raw data as a unicode string"),
        (b'{"user_id": "somebody"}', "user_id: Extra inputs are not permitted"),
        (b'{"categories": ["sofa"]}', "knows no category 'sofa'; there are 3"),
        (b"[]", "the request: Input should be a valid dictionary"),
        (b"", "the request: Field required"),
        (b"{", "the request is no JSON: Expecting property name"),
        (b'{"\xff": 1}', "the request is no JSON that is read: it is no text in UTF-8"),
        (b"[" * 100_000, "the request is no JSON that is read: it is nested too deeply"),
        (b'{"k": ' + b"9" * 5000 + b"}", "the request is no JSON that is read: a number has too many digits"),
        (b'{"history": [' + b'"item-1",' * 10_000 + b'"item-1"]}', "history: List should have at most 10000 items"),
        (json.dumps({"history": list(range(9))}).encode(), "(and 6 more)"),
    ],
)
def test_a_wrong_request_is_told_in_a_sentence(client: TestClient, body: bytes, sentence: str) -> None:
    reply = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert 400 <= reply.status_code < 500
    assert sentence in reply.json()["error"]
    assert len(reply.json()["error"]) <= 500


def test_a_batch_that_asks_for_too_much_is_refused(client: TestClient) -> None:
    assert client.post("/recommend/batch", json={"requests": []}).status_code == 422
    asked = [{"k": 1000}] * (MOST_ANSWERED // 1000)
    assert client.post("/recommend/batch", json={"requests": asked}).status_code == 200
    reply = client.post("/recommend/batch", json={"requests": [*asked, {"k": 1}]})
    assert (reply.status_code, "50,001 items" in reply.json()["error"]) == (422, True)


@pytest.mark.parametrize("told", [True, False])
def test_a_body_that_is_too_large_is_refused(client: TestClient, told: bool) -> None:
    def pieces():
        for _ in range(LARGEST_BODY // 65_536 + 1):
            yield b" " * 65_536

    content = b" " * (LARGEST_BODY + 1) if told else pieces()
    reply = client.post("/recommend", content=content, headers={"content-type": "application/json"})
    assert (reply.status_code, "larger than" in reply.json()["error"]) == (413, True)


def test_unknown_pages_and_methods_are_refused_alike(client: TestClient) -> None:
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert client.get("/recommend").status_code == 405
    assert client.put("/recommend/", follow_redirects=False).json() == {"error": "Not Found"}


def test_health_says_what_is_served_and_since_when(client: TestClient) -> None:
    reply = client.get("/health")
    assert reply.status_code == 200
    found = reply.json()
    assert (found["status"], found["version"], found["digest"]) == ("ok", 7, "cd" * 32)
    assert (found["as_of"], found["since"]) == ("2023-11-14T22:13:20+00:00", "2023-11-14T22:15:00+00:00")
    assert found["age_seconds"] > 0
    assert found["registry"]["state"] == "current"
    assert found["registry"]["seconds_since_poll"] >= 3


def test_without_a_model_nothing_is_served_and_health_says_so() -> None:
    client = TestClient(app_of(Shelf()))
    assert client.get("/health").status_code == 503
    assert client.get("/health").json()["status"] == "unavailable"
    reply = client.post("/recommend", json={})
    assert (reply.status_code, reply.json()) == (503, {"error": "there is no model to serve: it is the champion"})
    assert client.get("/metrics").status_code == 200


def test_metrics_count_requests_by_outcome(client: TestClient) -> None:
    client.post("/recommend", json={"history": ["item-4"]})
    client.post("/recommend", json={})
    client.post("/recommend", json={"allow": []})
    client.post("/recommend", json={"k": 0})
    client.post("/recommend/batch", json={"requests": [{}, {}]})
    client.get("/health")
    text = client.get("/metrics").text
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["recsys_requests_total", "/recommend", "answered"] == 2
    assert found["recsys_requests_total", "/recommend", "empty"] == 1
    assert found["recsys_requests_total", "/recommend", "refused"] == 1
    assert found["recsys_requests_total", "/recommend/batch", "answered"] == 1
    assert found["recsys_request_seconds_count", "/recommend"] == 4
    assert found[("recsys_fallbacks_total",)] == 3
    assert found["recsys_model_info", "7", "cd" * 32] == 1
    assert found[("recsys_model_refused_total",)] == 2
    assert found[("recsys_registry_seconds_since_poll",)] >= 3
    assert found["recsys_registry_state", "current"] == 1
    assert ("process_resident_memory_bytes",) in found


def test_openapi_describes_what_is_asked_and_answered(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/recommend", "/recommend/batch", "/health", "/metrics"}
    assert described["components"]["schemas"]["Question"]["properties"]["k"]["maximum"] == 1000
    assert client.get("/docs").status_code == 200


def test_a_batch_is_of_one_model_and_a_replaced_model_is_freed(folders: list[Path]) -> None:
    models = [served(Runtime.open(folder), version) for version, folder in enumerate(folders)]
    questions = [["item-4"], ["item-9", "item-2"], []]
    expected = [[[tuple(i) for i in a] for a in model.runtime.recommend(questions, 4)] for model in models]
    shelf = Shelf(models[0])
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            shelf.model = models[shelf.swaps % 2]
            shelf.swaps += 1

    seen = set()
    with TestClient(app_of(shelf)) as client:
        swapping = threading.Thread(target=swap)
        swapping.start()
        try:
            for _ in range(100):
                asked = {"requests": [{"history": history, "k": 4} for history in questions]}
                reply = client.post("/recommend/batch", json=asked).json()
                answers = [[(i["item_id"], i["score"], i["source"]) for i in a["items"]] for a in reply["answers"]]
                assert answers == expected[reply["model"]["version"]]
                seen.add(reply["model"]["version"])
        finally:
            ended.set()
            swapping.join()
        assert seen == {0, 1}
        old = weakref.ref(models[1].runtime)
        shelf.model = models[0]
        models.pop()
        client.post("/recommend", json={})
        gc.collect()
        assert old() is None
