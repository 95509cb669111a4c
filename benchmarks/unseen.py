"""What a text is worth to an item that nobody has bought yet: one night of a shop in which some items were never sold.

    python -m benchmarks.unseen --data DIR [--shop amazon-beauty-5core] [--preset standard] [--share 0.05] [--home DIR]

A share of the catalog, drawn by a fixed seed, loses every event but those that are a user's last. The last are the
test of a leave-one-out night, so all models are asked for items without a single training event, against the whole
catalog. The night runs once more on a catalog without texts, where such items have nothing but noise. Both rows are
appended to the results file; a row that is there is not run again.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.one_night import last_story, recsys

SEED = 0
TEXTS = ("title", "category", "description")


def main() -> None:
    """Runs both nights and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shop", default="amazon-beauty-5core")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--home", type=Path, default=Path("build/unseen"))
    parser.add_argument("--out", type=Path, default=Path("docs/unseen.jsonl"))
    asked = parser.parse_args()
    there = {json.loads(line)["name"] for line in asked.out.open()} if asked.out.exists() else set()
    for texts in ("texts", "no texts"):
        name = f"{asked.shop}/{asked.preset}, {asked.share:.0%} unsold, {texts}"
        if name not in there:
            home = asked.home / name.replace("/", "-").replace(" ", "-")
            prepare(asked.data / asked.shop, home, asked.share, texts == "texts")
            row = {"name": name, **night(home, asked.preset)}
            with asked.out.open("a") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
    print(as_markdown([json.loads(line) for line in asked.out.open()]))


def prepare(shop: Path, home: Path, share: float, texts: bool) -> None:
    """Write events.parquet and items.parquet of the shop as it is asked about into `home`."""
    events, items = pd.read_parquet(shop / "events.parquet"), pd.read_parquet(shop / "items.parquet")
    catalog = np.sort(items["item_id"].unique())
    unsold = np.random.default_rng(SEED).choice(catalog, int(share * len(catalog)), replace=False)
    # The file's order breaks ties of time, as the product does.
    events = events.sort_values(["user_id", "timestamp"], kind="stable")
    last = ~events.duplicated("user_id", keep="last")
    home.mkdir(parents=True, exist_ok=True)
    events[last | ~events["item_id"].isin(unsold)].sort_index().to_parquet(home / "events.parquet", index=False)
    if not texts:
        items[list(TEXTS)] = None
    items.astype(dict.fromkeys(TEXTS, "string")).to_parquet(home / "items.parquet", index=False)


def night(home: Path, preset: str) -> dict[str, object]:
    """One night, and what its report says of the unsold items."""
    words = ["nightly", "--preset", preset, "--split", "leave_one_out"]
    recsys(home / "home", *words, "--events", home / "events.parquet", "--items", home / "items.parquet")
    story = last_story(home / "home")
    return {
        "items": story["data"]["items"],
        "users": max(model["unseen_users"] for model in story["models"]),
        "models": {
            model["name"]: {"unseen": model["unseen"], "all": model["metrics"]["hr_at_10"]} for model in story["models"]
        },
    }


def as_markdown(rows: list[dict]) -> str:
    """HR@10 of unsold items and of all, with 95 % bounds; chance is ten of the catalog."""
    lines = ["| night | model | HR@10 of unsold items | HR@10 of all |", "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['name']} ({row['users']:,} users) | chance | {10 / row['items']:.4f} | |")
        for name, model in row["models"].items():
            cells = [f"{each['value']:.4f} ({each['low']:.4f} to {each['high']:.4f})" for each in model.values()]
            lines.append(f"| | {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
