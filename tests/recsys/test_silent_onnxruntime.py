"""onnxruntime sends nothing and keeps no id of the machine, whatever was set before and however it is come by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOLD = "cache/Microsoft"  # where its telemetry keeps the id of the machine, and what is yet to be sent


def run(program: str, home: Path) -> None:
    silent = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")  # each of which turns it off
    kept = {name: value for name, value in os.environ.items() if name not in silent}
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    subprocess.run([sys.executable, "-c", program], env={**kept, **places}, check=True)


@pytest.mark.parametrize(
    "module", ["recsys.runtime", "recsys.export", "tasks.adapters.load_check", "recsys.served_model"]
)
def test_whoever_imports_it_here_tells_nobody(module, tmp_path):
    run(f"import {module}, sys; assert 'onnxruntime' in sys.modules", tmp_path)
    assert not (tmp_path / TOLD).exists()


def test_by_itself_it_would(tmp_path):
    run("import onnxruntime", tmp_path)
    assert (tmp_path / TOLD).exists(), "this test looks for what is not there any more"


def test_no_module_imports_it_by_itself():
    root = Path(__file__).parents[2]
    found = [
        path
        for top in ("recsys", "tasks", "flows", "benchmarks")
        for path in (root / top).rglob("*.py")
        if any(line.startswith(("import onnxruntime", "from onnxruntime")) for line in path.read_text().splitlines())
    ]
    assert [path.name for path in found] == ["silent_onnxruntime.py"]
