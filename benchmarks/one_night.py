"""A night of a benchmark: `recsys` as a person would type it, and what the story of the last night says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RECSYS = Path(sys.executable).with_name("recsys")


def recsys(home: Path, *words: str | Path, log: Path | None = None) -> None:
    """One command in a home. Its output goes to the terminal, or to the end of `log`."""
    command = [str(word) for word in (RECSYS, *words, "--home", home)]
    if log is None:
        subprocess.run(command, check=True)
        return
    with log.open("a") as file:
        subprocess.run(command, check=True, stdout=file, stderr=file)


def last_story(home: Path) -> dict[str, Any]:
    """Of the last night that ended in a home: what its report is made of."""
    head = json.loads((home / "store" / "heads" / "last-night.json").read_text())
    story: dict[str, Any] = json.loads(Path(head["report"]).with_suffix(".json").read_text())
    return story
