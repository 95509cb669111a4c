"""`python -m flows.worker`: it says what is missing before it starts anything. That it works is told by docs/deploying.md."""

import os
import subprocess
import sys

import pytest

SERVERS = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}


@pytest.mark.parametrize("missing", SERVERS)
def test_it_starts_no_servers_of_its_own(missing, tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RECSYS_"))}
    given = {name: value for name, value in SERVERS.items() if name != missing}
    environment = {**kept, **given, "RECSYS_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-m", "flows.worker"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert missing in done.stderr
    assert "recsys up" in done.stderr
    assert not (tmp_path / "home").exists()
