"""The contestants of benchmarks/time_to_quality.py: each trains in a process of its own, before the same judge.

python -m benchmarks.time_to_quality_race ROW      # ROW: [race, file of the lesson, target] as JSON
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from recsys.histories import Cases, Histories
from recsys.recommender import History, Recommender
from recsys.sequence_model import Scorer, ndcg_of

BATCH, RATE, DROPOUT, BLOCKS = 128, 1e-3, 0.2, 2  # of the plain one, the defaults of RecTools


@dataclass(frozen=True)
class Race:
    """What a row is about."""

    contestant: str
    shop: str
    split: str
    width: int  # D
    length: int  # L, the most items that are read
    epochs: int  # of ours
    budget: float  # CPU seconds
    every: float  # CPU seconds between two looks, at most
    threads: int
    seed: int

    def is_of(self, row: dict[str, Any]) -> bool:
        """Whether `row` is this race's."""
        return all(row.get(name) == value for name, value in asdict(self).items())


@dataclass(frozen=True)
class Lesson:
    """What all learn from and are judged on; an npz, because RecTools' environment reads no Parquet."""

    histories: Histories
    cases: Cases  # of validation
    items: int  # N

    def save(self, file: Path) -> None:
        """Write it."""
        arrays = {f"histories.{name}": value for name, value in vars(self.histories).items()}
        targets = {"targets": np.concatenate(self.cases.targets), "sizes": [len(t) for t in self.cases.targets]}
        scalars = {"exclude_seen": self.cases.exclude_seen, "items": self.items}
        np.savez(file, users=self.cases.users, **arrays, **targets, **scalars)

    @classmethod
    def load(cls, file: Path) -> Self:
        """The inverse of `save`."""
        with np.load(file) as found:
            told = {name.removeprefix("histories."): found[name] for name in found if name.startswith("histories.")}
            histories, users = Histories(**told), found["users"]
            targets = np.split(found["targets"], np.cumsum(found["sizes"])[:-1])
            before = [histories.until(user, histories.train_end[user]) for user in users]
            return cls(histories, Cases(users, before, targets, bool(found["exclude_seen"])), int(found["items"]))

    def sequences(self, most: int) -> list[np.ndarray]:
        """The newest `most` training events of every user with two or more."""
        ends = enumerate(self.histories.train_end)
        return [self.histories.until(user, int(end))[-most:] for user, end in ends if end > 1]


@dataclass
class Judge:
    """Ranks for the validation users while the clock stands still, and says when it is over."""

    cases: Cases
    race: Race
    target: float
    looks: list[tuple[float, float]] = field(default_factory=list)  # CPU seconds of training, NDCG@10
    spent: float = 0.0
    since: float = 0.0

    def start(self) -> None:
        """Training goes on."""
        self.since = time.process_time()

    @property
    def seconds(self) -> float:
        """CPU seconds of training so far."""
        return self.spent + time.process_time() - self.since

    @property
    def due(self) -> bool:
        """Whether a pass takes so long that one should look before its end."""
        return self.seconds - (self.looks[-1][0] if self.looks else 0) >= self.race.every

    @property
    def over(self) -> bool:
        """Whether the target is reached or the budget spent, as of the last look."""
        return bool(self.looks) and (self.looks[-1][1] >= self.target or self.looks[-1][0] >= self.race.budget)

    def look(self, model: Recommender) -> float:
        """The NDCG@10 of now."""
        self.spent = self.seconds
        self.looks.append((round(self.spent, 2), float(ndcg_of(model, self.cases).mean())))
        print(
            f"{self.race.contestant}: {self.looks[-1][0]:.1f} s, {self.looks[-1][1]:.4f}", file=sys.stderr, flush=True
        )
        self.start()
        return self.looks[-1][1]


def ours(race: Race, lesson: Lesson, judge: Judge) -> None:
    """The teacher without texts."""
    from recsys.config import TeacherConfig
    from recsys.decoder import DecoderShape
    from recsys.teacher import BATCH_TOKENS, Teacher
    from recsys.training import HardLabels, Schedule, device, fit, seeded

    knobs = TeacherConfig()
    with seeded(device(), race.seed):
        shape = DecoderShape.of(lesson.items, race.width, knobs.blocks, race.length)
        teacher = Teacher(shape, None, knobs.dropout)
    baskets = race.split == "temporal"
    schedule = Schedule(race.epochs, knobs.learning_rate, race.seed, BATCH_TOKENS, redraw_baskets=baskets)
    judge.start()
    fit(
        teacher, lesson.histories, race.length, schedule, HardLabels(),
        lambda: judge.look(Scorer(teacher, race.length, race.contestant)),
        enough=lambda: judge.over,
    )  # fmt: skip


class PlainSASRec(nn.Module):
    """Kang and McAuley 2018 on torch's own encoder, pre-norm, item vectors tied."""

    def __init__(self, items: int, width: int, length: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(DROPOUT)
        layer = nn.TransformerEncoderLayer(width, 2, 4 * width, DROPOUT, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, BLOCKS, nn.LayerNorm(width), enable_nested_tensor=False)
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(length))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, L) codes, 0 padding on the right -> (B, L, D)."""
        x = self.items(codes) * self.items.embedding_dim**0.5 + self.positions.weight
        states: Tensor = self.encoder(self.dropout(x), mask=self.causal, is_causal=True)
        return states


class PlainScorer(Recommender):
    """It as a Recommender."""

    def __init__(self, model: PlainSASRec) -> None:
        self.model, self.name, self.items = model, "plain", model.items.num_embeddings - 1

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N)."""
        length = self.model.positions.num_embeddings
        codes, ends = padded([history[-length:] for history in histories], length)
        self.model.eval()
        with torch.inference_mode():
            last = self.model(codes)[torch.arange(len(codes)), ends - 1]
            return np.asarray(last @ self.model.items.weight[1:].T)


def padded(sequences: Sequence[np.ndarray], length: int) -> tuple[Tensor, Tensor]:
    """(B, L) codes, 0 on the right, and (B,) how many of each are real."""
    codes = np.zeros((len(sequences), length), np.int64)
    for row, sequence in enumerate(sequences):
        codes[row, : len(sequence)] = sequence
    return torch.from_numpy(codes), torch.tensor([len(sequence) for sequence in sequences])


def plain(race: Race, lesson: Lesson, judge: Judge) -> None:
    """No tricks: every user once a pass, every position scored against every item."""
    torch.manual_seed(race.seed)
    model = PlainSASRec(lesson.items, race.width, race.length)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    codes, _ = padded(lesson.sequences(race.length + 1), race.length + 1)
    scorer = PlainScorer(model)
    judge.start()
    while not judge.over:
        for batch in torch.randperm(len(codes)).split(BATCH):
            model.train()
            logits = model(codes[batch, :-1]) @ model.items.weight.T
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), codes[batch, 1:].flatten(), ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if judge.due:
                judge.look(scorer)
                if judge.over:
                    return
        judge.look(scorer)


def rectools(race: Race, lesson: Lesson, judge: Judge) -> None:
    """RecTools' SASRec as its documentation has it, watched by a callback."""
    import pandas as pd
    import pytorch_lightning as lightning
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    class Watch(lightning.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            judge.start()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if judge.due:
                self.on_train_epoch_end(trainer)

        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            if not judge.over:
                judge.look(RecToolsScorer(model, lesson.items))
                model.torch_model.train()
            trainer.should_stop = judge.over

    def trainer() -> lightning.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return lightning.Trainer(
            max_epochs=-1, min_epochs=0, accelerator="cpu", devices=1, enable_checkpointing=False, callbacks=[Watch()], **quiet
        )  # fmt: skip

    lightning.seed_everything(race.seed)
    histories = lesson.histories
    lengths = np.diff(histories.offsets)
    user = np.repeat(np.arange(histories.users), lengths)
    learnt = np.arange(len(user)) - np.repeat(histories.offsets[:-1], lengths) < histories.train_end[user]
    columns = {"user_id": user, "item_id": histories.items, "weight": 1.0}
    events = pd.DataFrame({**columns, "datetime": pd.to_datetime(histories.times, unit="s")})[learnt]
    model = SASRecModel(n_factors=race.width, session_max_len=race.length, get_trainer_func=trainer)
    model.fit(Dataset.construct(events))


class RecToolsScorer(Recommender):
    """Its network over our codes; items that it was not given are -inf, as it never recommends them."""

    def __init__(self, model: Any, items: int) -> None:
        self.network, self.name, self.items = model.torch_model.eval(), "rectools", items
        self.length = model.session_max_len
        known = np.asarray(model.data_preparator.get_known_item_ids(), np.int64)
        self.inner = np.zeros(items + 1, np.int64)  # its number of our code, 0 is its padding too
        self.inner[known] = model.data_preparator.get_known_items_sorted_internal_ids()

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N)."""
        x = np.zeros((len(histories), self.length), np.int64)
        for row, history in enumerate(histories):
            read = self.inner[history]
            read = read[read > 0][-self.length :]
            x[row, self.length - len(read) :] = read
        with torch.inference_mode():
            table = self.network.item_model.get_all_embeddings()
            scores = self.network.encode_sessions({"x": torch.from_numpy(x)}, table)[:, -1] @ table.T
        return np.where(self.inner[1:] > 0, scores.numpy()[:, self.inner[1:]], -np.inf).astype(np.float32)


CONTESTANTS = {"ours": ours, "rectools": rectools, "plain": plain}


def run(race: Race, file: Path, target: float) -> dict[str, Any]:
    """One row, in this process."""
    torch.set_num_threads(race.threads)
    lesson = Lesson.load(file)
    judge = Judge(lesson.cases, race, target)
    CONTESTANTS[race.contestant](race, lesson, judge)
    target = target if math.isfinite(target) else judge.looks[-1][1]
    there = [seconds for seconds, reached in judge.looks if reached >= target]
    return {
        **asdict(race),
        "target": target,
        "reached": bool(there),
        "seconds": there[0] if there else judge.looks[-1][0],
        "best": max(reached for _, reached in judge.looks),
        "looks": judge.looks,
        "cases": len(lesson.cases),
    }


if __name__ == "__main__":
    race, file, target = json.loads(sys.argv[1])
    print(json.dumps(run(Race(**race), Path(file), target), sort_keys=True))
