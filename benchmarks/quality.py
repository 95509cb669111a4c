"""Quality of whole nights on real shops: one row a shop and preset, appended to a results file, resumable row by row.

    python -m benchmarks.quality --data DIR [--out docs/results.jsonl] [--home DIR] [SHOP/PRESET[/VARIANT] ...]

DIR holds a folder a shop with events.parquet and items.parquet. Each row is one `recsys nightly`; a row that is in
the file already is not run again. Test users are scored once, by the night itself.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.one_night import last_story, recsys

METRICS = ("ndcg_at_10", "hr_at_10")


@dataclass(frozen=True)
class Row:
    """One night: which shop, which preset, what else is said on the command line, and about how long it takes."""

    shop: str
    preset: str
    options: tuple[str, ...]
    minutes: float  # on two cores
    variant: str = ""  # what sets it apart from the row of the same shop and preset

    @property
    def name(self) -> str:
        """As it is asked for on the command line."""
        return "/".join(filter(None, (self.shop, self.preset, self.variant)))


LEAVE_ONE_OUT = ("--split", "leave_one_out")


def knobs(*settings: str) -> tuple[str, ...]:
    """On the command line."""
    return tuple(word for setting in settings for word in ("--set", setting))


DENSE = knobs(
    "data.history_length=200", "teacher.blocks=2", "teacher.dropout=0.3", "teacher.learning_rate=0.001",
    "search.dropouts=[0.05]",
)  # fmt: skip
"""For ML-1M, with 165 events a user: 200 are read, as its literature does; two blocks, and less dropout than for a sparse shop."""

ROWS = (
    Row("online-retail", "quick", (), 3),
    Row("ml-100k", "quick", (), 3),
    Row("amazon-beauty-5core", "quick", LEAVE_ONE_OUT, 6),
    Row("ml-100k", "standard", (), 10),
    Row("amazon-beauty-5core", "standard", LEAVE_ONE_OUT, 30),
    Row("online-retail", "standard", (), 25),
    *(
        Row(
            "amazon-beauty-5core",
            "standard",
            LEAVE_ONE_OUT + knobs(f"teacher.seed={n}", f"search.seed={n}"),
            30,
            f"seed-{n}",
        )
        for n in (1, 2)
    ),
    Row("amazon-beauty-5core", "standard", LEAVE_ONE_OUT + knobs("teacher.members=2"), 50, "two-members"),
    Row("ml-1m", "standard", LEAVE_ONE_OUT + DENSE + knobs("search.trials=2", "search.widths=[128]"), 60),
)


def main() -> None:
    """Runs what is asked for and not yet there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=[row.name for row in ROWS])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/results.jsonl"))
    parser.add_argument("--home", type=Path, default=Path("build/quality"))
    arguments = parser.parse_args()
    there = {json.loads(line)["name"] for line in arguments.out.open()} if arguments.out.exists() else set()
    rows = [row for row in ROWS if row.name in arguments.rows and row.name not in there]
    print(f"{len(rows)} rows, about {sum(row.minutes for row in rows):.0f} minutes on two cores", flush=True)
    for row in rows:
        result = night(row, arguments.data / row.shop, arguments.home / row.name)
        with arguments.out.open("a") as file:
            file.write(json.dumps(result, sort_keys=True) + "\n")
        print(json.dumps(result, indent=1), flush=True)
    for line in arguments.out.open():
        print(as_markdown(json.loads(line)))


def night(row: Row, data: Path, home: Path) -> dict[str, object]:
    """One night in a home of its own, and what its story says."""
    words = ["nightly", "--preset", row.preset, *row.options]
    began = time.monotonic()
    recsys(home, *words, "--events", data / "events.parquet", "--items", data / "items.parquet")
    seconds, story = time.monotonic() - began, last_story(home)
    shown = ["recsys", *words, "--events", f"{row.shop}/events.parquet"]
    return {
        "name": row.name,
        "command": " ".join([*shown, "--items", f"{row.shop}/items.parquet"]),
        "decision": story["decision"],
        "sentence": story["sentence"],
        "seconds": round(seconds, 1),
        "load_before": round(os.getloadavg()[0], 1),
        "test_users": story["data"]["test_users"],
        "steps": {step["name"]: round(step["seconds"], 1) for step in story["steps"]},
        "models": {
            model["name"]: {
                **{metric: model["metrics"][metric] for metric in METRICS},
                "bytes": model["bytes"],
                "p99_ms": model["p99_ms"],
                "coverage": model["coverage"],
            }
            for model in story["models"]
        },
        "criteria": [
            {key: row[key] for key in ("name", "kind", "value", "low", "high", "outcome")} for row in story["criteria"]
        ],
        "trials": [
            {key: trial[key] for key in ("width", "weight", "k", "dropout", "state", "validation_ndcg", "best")}
            for trial in story["trials"]
        ],
    }


def as_markdown(result: dict) -> str:
    """A row as docs/results.md shows it: a heading, the command, and a table of models."""
    lines = [
        f"### {result['name']}: {result['decision']}",
        f"`{result['command']}`: {result['seconds']:.0f} s, {result['test_users']:,} test users. {result['sentence']}",
        "",
        "| model | NDCG@10 (95 % bounds) | HR@10 (95 % bounds) | kB | p99 ms | catalog shown |",
        "|---|---|---|---|---|---|",
    ]
    for name, model in result["models"].items():
        figures = [
            f"{model[metric]['value']:.4f} ({model[metric]['low']:.4f} to {model[metric]['high']:.4f})"
            for metric in METRICS
        ]
        size = f"{model['bytes'] / 1e3:,.0f}" if model["bytes"] else "-"
        lines.append(f"| {name} | {' | '.join(figures)} | {size} | {model['p99_ms']:.2f} | {model['coverage']:.1%} |")
    against = [c for c in result["criteria"] if c["low"] is not None and not c["name"].startswith("slice_")]
    shown = [f"{c['name']} {c['value']:+.4f} ({c['low']:+.4f} to {c['high']:+.4f}) {c['outcome']}" for c in against]
    trials = [_trial(trial) for trial in result["trials"]]
    steps = [f"{name} {seconds:.0f}" for name, seconds in result["steps"].items()]
    lines += ["", f"Gate: {'; '.join(shown)}.", "", f"Trials (validation NDCG@10): {'; '.join(trials)}."]
    return "\n".join([*lines, "", f"Seconds: {', '.join(steps)}.", ""])


def _trial(trial: dict) -> str:
    """Rows before 30 November have no dropout of their own."""
    dropout = f" dropout {trial['dropout']:g}" if "dropout" in trial else ""
    best = " (best)" if trial["best"] else ""
    return (
        f"width {trial['width']} a {trial['weight']:.2f} K {trial['k']}{dropout}: {trial['validation_ndcg']:.4f}{best}"
    )


if __name__ == "__main__":
    main()
