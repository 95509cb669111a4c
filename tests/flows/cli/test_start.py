"""A command that is told to end before it has begun says so, as the real process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SLOW = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"


def test_sigterm_while_python_imports_ends_with_a_sentence(tmp_path):
    (tmp_path / "typer.py").write_text(SLOW)  # the first thing that the command line imports
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli.start", "doctor"],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert told == "recsys: ended by SIGTERM. What was finished is kept: the same command goes on from there.\n"


def test_it_imports_nothing_heavy_before_it_listens():
    looked = "import flows.cli.start, sys; print(sorted(n for n in sys.modules if n.split('.')[0] in ('typer', 'tasks', 'recsys')))"
    found = subprocess.run([sys.executable, "-c", looked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
