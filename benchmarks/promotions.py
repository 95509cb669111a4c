"""How long the champion takes to change: random promotions and rollbacks on a live home. `python -m benchmarks.promotions`

Timed from the request to the aliases read back: the hand-moved alias looked for, the version downloaded, its digest
compared, loaded in a clean process, its golden requests answered, its latency taken, the ledger written and read again.
After every move ledger and aliases are compared with a model of a dozen lines. The last line is a row for a table.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tasks.adapters.servers import Ports, serving
from tasks.adapters.settings import Settings

MOVES = 100
VERSIONS = 5
LIMIT_SECONDS = 5.0  # p99 of a move


@dataclass
class Podium:
    """What must be true: champions one above the other. A promotion adds one, a rollback uncovers one."""

    standing: list[int] = field(default_factory=list)
    served: set[int] = field(default_factory=set)

    def promote(self, version: int) -> None:
        """On top."""
        self.standing.append(version)
        self.served.add(version)

    def roll_back(self, version: int) -> None:
        """Uncovered, or put on top again when it was taken off before."""
        if version in self.standing:
            while self.standing[-1] != version:
                self.standing.pop()
        else:
            self.promote(version)

    @property
    def aliases(self) -> dict[str, int]:
        """As MLflow should show them."""
        return dict(zip(("champion", "previous"), reversed(self.standing[-2:]), strict=False))


@dataclass(frozen=True)
class Wish:
    """One random move. `to` None: the champion before, whichever that is."""

    op: str
    to: int | None


def wishes(podium: Podium, versions: Sequence[int], draw: random.Random) -> Wish:
    """The next move: three of five are promotions, one rollback in two names its target."""
    champion = podium.aliases.get("champion")
    earlier = sorted(podium.served - {champion})
    if not earlier or draw.random() < 0.6:
        return Wish("promote", draw.choice([version for version in versions if version != champion]))
    if "previous" in podium.aliases and podium.aliases["previous"] != champion and draw.random() < 0.5:
        return Wish("rollback", None)
    return Wish("rollback", draw.choice(earlier))


def follow(podium: Podium, wish: Wish) -> None:
    """The model's part of a move."""
    if wish.op == "promote":
        assert wish.to is not None
        podium.promote(wish.to)
    else:
        podium.roll_back(podium.aliases["previous"] if wish.to is None else wish.to)


def stock(settings: Settings, count: int) -> list[int]:
    """Registers `count` tiny artifacts, each with its own weights and catalog, as nights would; gives their numbers."""
    from tasks.adapters.packaging import ANSWERS
    from tasks.adapters.registry import DECISION, STUDENT
    from tasks.adapters.store import Recipe
    from tasks.workshop import Workshop

    workshop = Workshop.anew(settings)
    run_id = workshop.tracking.start_night("nightly stock", {}, {})
    numbers = []
    for seed in range(count):
        made = workshop.store.make(Recipe("artifact", 1, {"seed": seed}, ()), lambda out, s=seed: tiny_artifact(out, s))
        numbers.append(
            workshop.registry.register(
                STUDENT,
                workshop.store.open("artifact", made.digest),
                "recsys.runtime",
                run_id=run_id,
                intent=f"stock {seed}",
                tags={DECISION: "PROMOTE", "recsys.latency_ms": "20"},
                description=f"Fit for promotion: stock {seed}.",
                example=ANSWERS,
            )
        )
    workshop.tracking.finish(run_id, "FINISHED")
    return numbers


def tiny_artifact(out: Path, seed: int) -> None:
    """Random weights over 12 items and one more for each seed: every version has a catalog of its own."""
    import torch

    from recsys.decoder import Decoder, DecoderShape
    from recsys.export import Publication, export
    from recsys.histories import Catalog

    items = 12 + seed
    nothing = [None] * items
    catalog = Catalog([f"item-{code}" for code in range(items)], nothing, nothing, nothing)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = Decoder(DecoderShape.of(items, 16, 1, 8), 0.0).eval()
    export(decoder, Publication(catalog, np.arange(items, 0, -1), "exclude", {}), 8, out)


def walk(settings: Settings, versions: Sequence[int], moves: int, seed: int) -> list[float]:
    """So many random moves, each checked against the model. Gives the seconds of each."""
    from tasks.adapters.registry import STUDENT
    from tasks.change_champion import Move, change_champion
    from tasks.workshop import Workshop

    workshop, podium, draw, seconds = Workshop.anew(settings), Podium(), random.Random(seed), []
    for number in range(moves):
        wish = wishes(podium, versions, draw)
        move = Move(op=wish.op, to=wish.to, actor="benchmark", reason=f"move {number}", at=datetime.now(UTC))
        started = time.perf_counter()
        moved = change_champion(workshop, move)
        seconds.append(time.perf_counter() - started)
        follow(podium, wish)
        chain = workshop.ledger.chain().require_intact()
        assert moved.changed, moved
        assert len(chain.records) == number + 1, "one move, one record"
        assert (chain.champion, chain.previous) == (podium.aliases["champion"], podium.aliases.get("previous"))
        assert dict(workshop.registry.aliases(STUDENT)) == podium.aliases
    return seconds


@contextmanager
def live_home(folder: Path) -> Iterator[Settings]:
    """A new home with its servers running; everything goes to MLflow over HTTP."""
    settings = Settings.from_environment(folder).prepare().export()
    with serving(settings, Ports()):
        yield settings.export()


def main() -> int:
    """Prints p50 and p99; exit code 1 when p99 is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=MOVES)
    parser.add_argument("--versions", type=int, default=VERSIONS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="promotions-") as folder, live_home(Path(folder)) as settings:
        versions = stock(settings, arguments.versions)
        seconds = walk(settings, versions, arguments.moves, arguments.seed)
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    print("| moves | versions | over | p50 s | p99 s | worst s | each checked |")
    print("|---|---|---|---|---|---|---|")
    print(f"| {len(seconds)} | {len(versions)} | HTTP | {p50:.2f} | {p99:.2f} | {max(seconds):.2f} | yes |")
    return int(p99 > LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
