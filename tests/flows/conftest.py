"""A Prefect server for nights of several homes: one that each night starts for itself takes longer than the night."""

from collections.abc import Iterator

import pytest

from tests import servers


@pytest.fixture(scope="session")
def orchestrator(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The variable that names it, as somebody sets it who has a Prefect of his own."""
    with servers.prefect(tmp_path_factory.mktemp("orchestrator")) as url:
        yield {"PREFECT_API_URL": url}
