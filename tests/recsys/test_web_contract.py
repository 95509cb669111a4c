"""The web app keeps what its OpenAPI description promises: Schemathesis asks, and compares every answer with it.

Always the same questions. What fits the schema may still be refused with 422, for what only the model or the whole of a
batch can tell: that is held to its sentence here, in place of Schemathesis's rule that what fits is accepted. 503 is what
the description says of a server without a model, any other 5xx is not described. Its pytest plug-in is not used, which
reads names that pytest 9 has no more.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from recsys.runtime import Runtime
from recsys.web import app_of
from tests.recsys.test_web import Shelf, served, write_artifact

QUESTIONS, PAGES = ("/recommend", "/recommend/batch"), ("/health", "/metrics")
REFUSED = ("the model knows no category", "the batch asks for")
ALWAYS = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """A model that is served."""
    return Shelf(served(Runtime.open(write_artifact(tmp_path_factory.mktemp("published") / "artifact", 0))))


IDLE = Shelf(None)  # no model yet


def statuses(shelf: Shelf, path: str, method: str, mode: GenerationMode) -> set[int]:
    """What was answered, by an app of its own, which ends with it; each answer was compared with the description."""
    found, schema = set(), schemathesis.openapi.from_asgi("/openapi.json", app_of(shelf))

    @ALWAYS
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def ask(case) -> None:
        reply = case.call()
        case.validate_response(reply, excluded_checks=[positive_data_acceptance, not_a_server_error])
        found.add(reply.status_code)
        if mode is GenerationMode.POSITIVE and reply.status_code == 422:
            assert reply.json()["error"].startswith(REFUSED)

    ask()
    return found


@pytest.mark.parametrize("path", QUESTIONS)
def test_what_fits_is_answered_as_described(serving, path):
    assert statuses(serving, path, "POST", GenerationMode.POSITIVE) <= {200, 422}
    assert 503 in statuses(IDLE, path, "POST", GenerationMode.POSITIVE)


@pytest.mark.parametrize("path", QUESTIONS)
def test_what_does_not_fit_is_refused_as_described(serving, path):
    assert statuses(serving, path, "POST", GenerationMode.NEGATIVE) == {422}


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_as_described(serving, path):
    assert statuses(serving, path, "GET", GenerationMode.POSITIVE) == {200}
    assert statuses(IDLE, path, "GET", GenerationMode.POSITIVE) == {503 if path == "/health" else 200}


# --- what was found, without Schemathesis -------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b'{"\xff": 1}', b"[" * 100_000, b'{"k": ' + b"9" * 5000 + b"}"])
def test_a_body_at_which_json_gives_up_is_refused_as_described(serving, body):
    reply = TestClient(app_of(serving)).post("/recommend", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422
    assert reply.json()["error"].startswith("the request is no JSON that is read: ")


@pytest.mark.parametrize(("path", "allowed"), [("/recommend", "POST"), ("/metrics", "GET")])
def test_another_method_is_refused_with_those_there_are(serving, path, allowed):
    reply = TestClient(app_of(serving)).request("DELETE", path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)


def test_metrics_are_described_as_text(serving):
    described = app_of(serving).openapi()["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert list(described) == ["text/plain"]
