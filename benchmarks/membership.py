"""Who was in the training: a shadow attack on teacher, student and artifact, user by user.

    python -m benchmarks.membership [--home DIR] [--preset quick] [--shadows 8] [--users 1000]

Uses the dataset of the last night of --home; where no night has ended, one is run on the built-in shop. Each shadow is a
whole factory in small: a teacher, its soft labels, a student distilled from them with its neighbours, an artifact of eight
bits, all from a random half of the users (by coin, so nobody's place in one tells of another). The attacker has a
user's events and asks how likely a model finds them; each shadow in turn is the target, the others tell what such an
answer is like of models that learnt from this user and of models that did not (LiRA, Carlini et al. 2022, with one
variance for all users, section VI C, as for few shadows). Beside it the same without shadows, by the answer alone. Both
sides are users of the same shop at the same time: no drift tells them apart.

Shadows are kept in --work as they are made; what is there is not made again. Rows are appended to --out.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.one_night import recsys
from recsys.blending import opinion_for
from recsys.config import NightConfig
from recsys.dataset import Dataset
from recsys.decoder import DecoderShape
from recsys.export import Publication, export
from recsys.histories import Cases, Histories
from recsys.losses import Distillation
from recsys.membership import log_probabilities, ranks_among, share_caught
from recsys.neighbourhood import Neighbourhood
from recsys.presets import PRESETS
from recsys.recommender import Recommender
from recsys.runtime import Runtime
from recsys.sequence_model import Scorer, ranking_validator
from recsys.soft_labels import Labelling, Positions, SoftLabels, write_segment
from recsys.statistics import CONFIDENCE, Interval
from recsys.student import Student
from recsys.teacher import fit_teacher
from recsys.teachers import BlendedTeacher
from recsys.training import Schedule, fit
from tasks import computing
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tasks.last_night import HEAD, LastNight

MODELS = ("teacher", "student", "artifact")
EVENTS = 5  # of a user that the attacker asks about, evenly spaced
WEIGHT = 0.9  # of the soft label, the first of the search
RESAMPLES = 500


def main() -> None:
    """Makes the shadows that are missing, attacks, prints the table."""
    asked = _arguments()
    settings = Settings.from_environment(asked.home)
    store = Store(settings.store)
    if store.head(HEAD) is None:
        recsys(asked.home, "nightly", "--preset", asked.preset)
    computing.use(settings)
    digest = LastNight.of(store).dataset
    dataset, config = Dataset.load(store.open("build", digest)), PRESETS[asked.preset]
    work = asked.work / f"{digest[:12]}-{asked.preset}-{asked.users}"
    work.mkdir(parents=True, exist_ok=True)
    for seed in range(asked.shadows):
        file = work / f"shadow-{seed}.npz"
        if not file.exists():
            began = time.monotonic()
            np.savez(work / "draft.npz", **shadow(dataset, config, seed, asked.users))
            (work / "draft.npz").rename(file)
            print(f"shadow {seed + 1} of {asked.shadows}: {time.monotonic() - began:.0f} s", flush=True)
    shadows = [np.load(work / f"shadow-{seed}.npz") for seed in range(asked.shadows)]
    members = np.stack([each["member"] for each in shadows])
    rows = [
        {"dataset": digest[:12], "preset": asked.preset, "shadows": asked.shadows, "model": model}
        | told(members, np.stack([each[model] for each in shadows]))
        for model in MODELS
    ]
    told_before = asked.out.read_text().splitlines() if asked.out.exists() else []
    lines = [json.dumps(row, sort_keys=True) for row in rows]
    with asked.out.open("a") as file:
        file.writelines(f"{line}\n" for line in lines if line not in told_before)
    print(as_markdown(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("build/membership/home"))
    parser.add_argument("--preset", choices=list(PRESETS), default="quick")
    parser.add_argument("--shadows", type=int, default=8)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--work", type=Path, default=Path("build/membership/shadows"))
    parser.add_argument("--out", type=Path, default=Path("docs/membership.jsonl"))
    return parser.parse_args()


def shadow(dataset: Dataset, config: NightConfig, seed: int, users: int) -> Mapping[str, np.ndarray]:
    """`member` (C,) bool, and by model (C,) the mean log-probability of a user's events, of C users alike in all shadows."""
    whole = dataset.histories
    inside = np.random.default_rng(seed).random(whole.users) < 0.5
    halved = replace(dataset, histories=replace(whole, train_end=np.where(inside, whole.train_end, 0).astype(np.int32)))
    chosen = np.flatnonzero(whole.train_end > EVENTS)
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(users, len(chosen))).astype(np.int64)]
    cases, models = events_of(whole, chosen, dataset.repeats == "exclude"), {}
    with TemporaryDirectory() as folder:
        for name, model in factory(halved, config, seed, Path(folder)).items():
            models[name] = log_probabilities(model, cases).reshape(len(chosen), EVENTS).mean(axis=1)
    return {"member": inside[chosen], **models}


def events_of(histories: Histories, users: np.ndarray, exclude_seen: bool) -> Cases:
    """EVENTS training positions of each user, evenly spaced, each with its history."""
    places = np.linspace(1, histories.train_end[users] - 1, EVENTS).T.astype(np.int64)  # (C, EVENTS)
    rows = [(int(user), int(at)) for user, some in zip(users, places, strict=True) for at in some]
    seen = [histories.until(user, at + 1) for user, at in rows]
    return Cases(np.repeat(users, EVENTS), [each[:-1] for each in seen], [each[-1:] for each in seen], exclude_seen)


def factory(dataset: Dataset, config: NightConfig, seed: int, folder: Path) -> dict[str, Recommender]:
    """Teacher, student and artifact of a dataset, without texts and without a search."""
    histories, items, cases = dataset.histories, dataset.catalog.items, dataset.validation_cases()
    length, blend, search = config.data.history_length, config.blend, config.search
    model, _ = fit_teacher(
        histories, cases, items, None, config.teacher.model_copy(update={"seed": seed}),
        length=length, redraw_baskets=dataset.has_baskets,
    )  # fmt: skip
    teacher = BlendedTeacher.of(model, histories, cases, blend)
    positions = Positions.of(histories, length)
    labelling = Labelling.of(f"shadow {seed}", items, dataset.catalog.item_ids, config.labels)
    write_segment(teacher.model, labelling, positions, [], folder / "labels", opinion=teacher.opinion)
    labels = SoftLabels.open([folder / "labels"], positions, labelling)
    student = Student.untrained(DecoderShape.of(items, search.widths[0], 1, length), search.dropouts[0], seed)
    fit(
        student, histories, length, Schedule(search.epochs, search.learning_rate, seed),
        Distillation(labels, WEIGHT, labelling.top_k), ranking_validator(student, cases),
    )  # fmt: skip
    lists = Neighbourhood.of_training(histories, items, blend.student_neighbours, blend.newest).as_rounded()
    opinion = opinion_for(student, lists, cases)
    published = Publication(dataset.catalog, dataset.training_counts(), dataset.repeats, {}, opinion)
    export(student, published, 8, folder / "artifact")
    scorer = Scorer(student, length, "student", opinion=opinion)
    return {"teacher": teacher.scorer("teacher"), "student": scorer, "artifact": Runtime.open(folder / "artifact")}


def told(members: np.ndarray, said: np.ndarray) -> dict[str, object]:
    """The attack with shadows and without, on answers (S, C) of S models whose users were `members` (S, C)."""
    sound = np.isfinite(said).all(axis=0)
    members, said = members[:, sound], said[:, sound]
    found: dict[str, object] = {"users": int(sound.sum())}
    for name, scores in (("shadow", likelihood_ratios(members, said)), ("loss", said)):
        for what, statistic in (("auc", mean_auc), ("caught", share_caught)):
            found[f"{name}_{what}"] = asdict(over_users(statistic, members, scores))
    return found


def likelihood_ratios(members: np.ndarray, said: np.ndarray) -> np.ndarray:
    """(S, C) log of the odds that each model learnt from each user, by the other models; NaN where they are all alike.

    Both answers are taken for normal, with means of the user's own and one variance.
    """
    ratios = np.full(said.shape, np.nan)
    for target in range(len(said)):
        others = np.arange(len(said)) != target
        inside, outside = (_mean(said[others], members[others] == side) for side in (True, False))
        spread = np.where(members[others], said[others] - inside, said[others] - outside)
        variance = np.nanmean(spread**2)
        ratios[target] = (inside - outside) * (said[target] - (inside + outside) / 2) / variance
    return ratios


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(C,) mean over the models chosen by `where` (S, C), NaN where none is."""
    count = where.sum(axis=0)
    return np.where(count, (values * where).sum(axis=0) / np.maximum(count, 1), np.nan)


Statistic = Callable[[np.ndarray, np.ndarray], float]
"""Scores of members and of others -> a number."""


def mean_auc(inside: np.ndarray, outside: np.ndarray) -> float:
    """P(inside > outside), ties by half."""
    return float(ranks_among(inside, outside).mean())


def over_users(statistic: Statistic, members: np.ndarray, scores: np.ndarray) -> Interval:
    """The mean of a statistic over the S targets, with one-sided 95 % bounds: users are drawn, each with all its scores."""
    rng, users = np.random.default_rng(0), members.shape[1]

    def mean(rows: np.ndarray) -> float:
        some = [(one[rows][np.isfinite(one[rows])], who[rows][np.isfinite(one[rows])]) for one, who in both]
        return float(np.mean([statistic(one[who], one[~who]) for one, who in some]))

    both = list(zip(scores, members, strict=True))
    drawn = [mean(rng.integers(0, users, users)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [1 - CONFIDENCE, CONFIDENCE])
    return Interval(mean(np.arange(users)), float(low), float(high))


def as_markdown(rows: list[dict]) -> str:
    """One line a model; bounds are one-sided, 95 %."""
    names = ("shadow_auc", "shadow_caught", "loss_auc", "loss_caught")
    lines = ["| model | AUC, shadows | caught at 1 % | AUC, loss alone | caught at 1 % |", "|---|---|---|---|---|"]
    for row in rows:
        cells = ["{value:.3f} ({low:.3f} to {high:.3f})".format(**row[name]) for name in names]
        lines.append(f"| {row['model']} ({row['users']:,} users) | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
