"""The ML Test Score of a run of the suite: earned by tests that ran green, not claimed. `python -m benchmarks.ml_test_score run.xml`

E. Breck et al., The ML Test Score, 2017: 28 items in four groups (data, model, infrastructure, monitoring), 0.5 for one that is
held by hand and documented, 1 for one that is automated; a group is the sum of its items, the score the least of the groups.
Which tests hold an item, and what it earns at most (0.5 also where tests show only a part of it), is in docs/reliability.toml. `run.xml` is what `pytest --junitxml=run.xml` writes.
An item earns its points when each of its tests is in that file and all cases of each passed: a failed, skipped or absent one
earns nothing, and neither does a run that is older than a week.

Two items cannot be earned in full without live traffic: M2 (offline figures agree with what users do) and O7 (quality on what
is served does not fall); replayed, they are half a point each. So 6.5 is the most that can honestly be had here, in the model
and the monitoring group, and with them the score.
"""

import argparse
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.reliability import SCORED, Item, Reliability
from recsys.errors import ConfigError, RecsysError

FRESH = timedelta(days=7)
"""A test that has not run for so long proves nothing of today's code."""


@dataclass(frozen=True)
class Run:
    """When the suite ran (UTC), and of each test "recsys/test_x.py::test_y" how it ended: passed, failed or skipped."""

    ran: datetime
    ended: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, now: datetime) -> "Run":
        """Of several cases of a test the worst counts. Raises ConfigError for what is no run, or an old one."""
        try:
            root = ET.parse(path).getroot()
            ran = min(datetime.fromisoformat(suite.attrib["timestamp"]) for suite in root.iter("testsuite"))
        except (OSError, ET.ParseError, KeyError, ValueError) as error:
            raise ConfigError(
                f"this is no run of the suite: {error}", where=str(path), mend="pytest --junitxml=FILE"
            ) from None
        ran = ran.astimezone(UTC)
        if now - ran > FRESH:
            raise ConfigError(
                f"the run is of {ran:%d %B %Y}, more than a week ago", where=str(path), mend="Run it again."
            )
        ended: dict[str, str] = {}
        for case in root.iter("testcase"):
            name = _name(case.attrib["classname"], case.attrib["name"])
            ended[name] = max(ended.get(name, "passed"), _ending(case), key=("passed", "skipped", "failed").index)
        return cls(ran, ended)


@dataclass(frozen=True)
class Earned:
    """An item's points, and what it lacks of its `most`: each test that did not pass, and how it ended."""

    points: float
    most: float
    lacks: Mapping[str, str]


def earned(item: Item, run: Run) -> Earned:
    """All or nothing; without tests nothing."""
    lacks = {test: run.ended.get(test, "absent") for test in item.by if run.ended.get(test) != "passed"}
    return Earned(item.most if item.by and not lacks else 0, item.most, lacks)


@dataclass(frozen=True)
class Score:
    """The least of the four sums."""

    ran: str
    score: float
    groups: Mapping[str, float]
    items: Mapping[str, Earned]


def score(items: Mapping[str, Sequence[Item]], run: Run) -> Score:
    each = {item.code: earned(item, run) for group in items.values() for item in group}
    groups = {name: sum(each[item.code].points for item in group) for name, group in items.items()}
    return Score(run.ran.isoformat(), min(groups.values()), groups, each)


def told(items: Mapping[str, Sequence[Item]], scored: Score) -> str:
    """The table of the terminal: a group, its items, and below an item what is missing."""
    lines = []
    for name, group in items.items():
        lines.append(f"{name}: {scored.groups[name]:g} of {len(group)}")
        for item in group:
            one = scored.items[item.code]
            lines.append(f"  {item.code}  {one.points:<3g} {item.what}")
            lines += [f"          {ended}: {test}" for test, ended in one.lacks.items()]
            lines += [f"          missing: {item.but}"] if item.but else []
    return "\n".join([*lines, f"score: {scored.score:g}"])


def _name(classname: str, name: str) -> str:
    """As pytest writes them: "tests.recsys.test_x" and "test_y[case]"."""
    return f"{classname.removeprefix('tests.').replace('.', '/')}.py::{name.partition('[')[0]}"


def _ending(case: ET.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="what pytest --junitxml wrote")
    parser.add_argument("--out", type=Path, default=SCORED, help="where the score is written, as JSON")
    asked = parser.parse_args(words)
    try:
        items = Reliability.load().items
        scored = score(items, Run.read(asked.run, datetime.now(UTC)))
    except RecsysError as error:
        sys.exit(str(error))
    asked.out.write_text(json.dumps(asdict(scored), indent=1) + "\n")
    print(told(items, scored))


if __name__ == "__main__":
    main()
