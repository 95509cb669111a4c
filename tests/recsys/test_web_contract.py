"""The web app keeps what its OpenAPI description promises: Schemathesis asks, and compares every answer with it.

Always the same questions. What fits the schema may still be refused with 422, for what only the model or the whole of a
batch can tell; that is compared with the sentence here, in place of Schemathesis's rule that what fits is accepted.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from recsys.runtime import Runtime
from recsys.web import app_of
from tests.recsys.test_web import Shelf, served, write_artifact

REFUSED = ("the model knows no category", "the batch asks for")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    return Runtime.open(write_artifact(tmp_path_factory.mktemp("published") / "artifact", 0))


@pytest.fixture
def serving(runtime):
    return schemathesis.openapi.from_asgi("/openapi.json", app_of(Shelf(served(runtime))))


@pytest.fixture
def idle():
    return schemathesis.openapi.from_asgi("/openapi.json", app_of(Shelf(None)))


always = settings(
    max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@schemathesis.pytest.from_fixture("serving").parametrize()
@always
def test_answers_are_as_described(case):
    reply = case.call()
    case.validate_response(reply, excluded_checks=[positive_data_acceptance])
    if case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE:
        assert reply.status_code == 200 or reply.json()["error"].startswith(REFUSED)


@schemathesis.pytest.from_fixture("idle").parametrize()
@always
def test_without_a_model_answers_are_as_described(case):
    reply = case.call()
    case.validate_response(reply, excluded_checks=[positive_data_acceptance])
    assert reply.status_code == 200 if case.path == "/metrics" else reply.status_code in (422, 405, 503)
