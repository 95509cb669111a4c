"""Kills one night again and again, each time in another step: run by tests/fork_server.py, which has imported everything.

    -c "from tests.faults.series import main; main()" HOME FOLDER '[["teach", 100], ...]' nightly --home HOME ...

Says how each ended and at which call, as JSON. FOLDER is for what the nights print.
"""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from tests.faults.aim import Aim, Watched
from tests.fork_server import Asked, execute


def main() -> None:
    """One point after the other, on one home."""
    home, folder, points, *words = sys.argv[1:]
    watched = Watched(Path(home), Path(folder) / "killed.out", Path(folder) / "killed.err")

    def begin() -> NoReturn:
        execute(Asked(words, dict(os.environ), os.getcwd()))

    ends = []
    for step, at in json.loads(points):
        aim = Aim(watched.out, "kill", step, at)
        ends.append((watched.run(aim, begin), aim.hit))
    print(json.dumps(ends))
