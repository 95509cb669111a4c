"""A night's story as one self-contained HTML page that a manager would read: no script, nothing fetched, printable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recsys import pedigree, pictures, wording
from recsys.canvas import Picture
from recsys.small_cells import FEW, FEWEST, WITHHELD, told
from recsys.story import LineageNode, ModelRow, Story
from recsys.wording import present

MOST_FILES, MOST_EXAMPLES, MOST_TITLES = 30, 6, 10
"""So many are shown, and how many more there are is said."""

METRICS: Mapping[str, str] = {"ndcg": "NDCG", "hr": "HR", "recall": "Recall", "mrr": "MRR"}
CUTOFFS = (1, 5, 10, 20)
KNOBS: Mapping[str, str] = {
    "width": "width",
    "dropout": "dropout",
    "weight": "distillation weight",
    "k": "soft labels K",
    "temperature": "temperature",
}

_DRAWN = {
    "size": pictures.quality_against_size,
    "latency": pictures.quality_against_latency,
    "curves": pictures.learning_curves,
    "trials": pictures.trials,
    "slices": pictures.slices,
    "grid": pictures.grid,
    "pedigree": pedigree.pedigree,
}
_WORDED: tuple[str, ...] = ("percent", "decimal", "count", "size", "milliseconds", "duration", "moment", "money")
_WORDED += ("bounds", "value_of", "threshold_of", "bounds_of")


def render(story: Story) -> str:
    """The whole page. Equal stories give equal pages; every text from the data is clipped, cleaned and escaped."""
    page = _environment().get_template("report.html.j2")
    drawn = {name: draw(story) for name, draw in _DRAWN.items()}
    longest = max((step.seconds for step in story.steps if present(step.seconds)), default=0.0)
    lists = {
        "unseen": [model for model in story.models if model.unseen_users],
        "attacked": [model for model in story.models if model.membership],
    }
    return page.render(
        story=story, pictures=drawn, figures=key_figures(story), leads=leads(story), longest=longest, **lists
    )


@dataclass(frozen=True)
class KeyFigure:
    """One number that a manager remembers."""

    label: str
    value: str
    note: str


def key_figures(story: Story) -> tuple[KeyFigure, ...]:
    """Quality, size, latency and standing of the artifact; none when it was not evaluated."""
    artifact, teacher, champion = (story.model(role) for role in ("artifact", "teacher", "champion"))
    if artifact is None:
        return ()
    figures = []
    if teacher is not None:
        kept = _ratio(_ndcg(artifact), _ndcg(teacher))
        note = f"NDCG@10 {wording.decimal(_ndcg(artifact))}, the teacher’s {wording.decimal(_ndcg(teacher))}"
        figures.append(KeyFigure("Teacher’s quality kept", wording.percent(kept), note))
        factor = _ratio(teacher.bytes, artifact.bytes)
        note = _factor(factor, "smaller", "larger", wording.size(teacher.bytes))
        figures.append(KeyFigure("Size", wording.size(artifact.bytes), note))
        factor = _ratio(teacher.p99_ms, artifact.p99_ms)
        note = _factor(factor, "faster", "slower", wording.milliseconds(teacher.p99_ms))
        figures.append(KeyFigure("p99 of one request", wording.milliseconds(artifact.p99_ms), note))
    if champion is None:
        figures.append(KeyFigure("Champion", "none before", "judged beside its teacher and the baselines"))
    else:
        change = _change(_ndcg(artifact), _ndcg(champion))
        note = f"NDCG@10 {wording.decimal(_ndcg(champion))} on the same users"
        figures.append(KeyFigure("Against the champion", wording.percent(change, signed=True), note))
    return tuple(figures)


def leads(story: Story) -> dict[str, str]:
    """One sentence for each section that has something to tell, by the section's name."""
    sentences = {
        "models": _models_lead(story),
        "gate": _gate_lead(story),
        "learning": _learning_lead(story),
        "slices": _slices_lead(story),
        "unseen": _unseen_lead(story),
        "membership": _membership_lead(story),
        "grid": _grid_lead(story),
        "data": _data_lead(story),
        "steps": _steps_lead(story),
    }
    return {name: sentence for name, sentence in sentences.items() if sentence}


def _models_lead(story: Story) -> str:
    artifact, teacher = story.model("artifact"), story.model("teacher")
    if artifact is None or teacher is None:
        return ""
    users = f"{wording.count(story.data.test_users)} " if story.data else ""
    return (
        f"Measured on the same {users}test users, with the file that is served: the artifact reaches "
        f"{wording.percent(_ratio(_ndcg(artifact), _ndcg(teacher)))} of the teacher’s NDCG@10."
    )


def _gate_lead(story: Story) -> str:
    rows = story.criteria
    if not rows:
        return ""
    passed = sum(row.outcome == "pass" for row in rows)
    open_ones = [f"{wording.plain(row.name, 60)} ({row.outcome})" for row in rows if row.outcome != "pass"]
    rest = f" Not passed: {'; '.join(open_ones)}." if open_ones else ""
    return f"{passed} of {wording.many(len(rows), 'criterion', 'criteria')} passed.{rest}"


def _learning_lead(story: Story) -> str:
    best = next((trial for trial in story.trials if trial.best), None)
    alone = story.undistilled
    if best is None:
        return ""
    if alone is None:
        return f"The best of {wording.many(len(story.trials), 'trial')} is trial {best.number}."
    if best is alone:
        return f"The best of {wording.many(len(story.trials), 'trial')} is the student without distillation."
    gain = wording.percent(_change(best.validation_ndcg, alone.validation_ndcg), signed=True)
    return (
        f"Of {wording.many(len(story.trials), 'trial')} the best reaches an NDCG@10 of "
        f"{wording.decimal(best.validation_ndcg)} on the validation users; the student without distillation "
        f"{wording.decimal(alone.validation_ndcg)}. Distillation is worth {gain}.{_knobs_told(story)}"
    )


def _knobs_told(story: Story) -> str:
    """One sentence on what the search's knobs mattered; nothing where it had too few trials to say."""
    if not story.knobs:
        return ""
    several = [f"{KNOBS.get(knob.name, knob.name)} {wording.percent(knob.share, digits=0)}" for knob in story.knobs]
    weighed = sum(trial.state == "complete" and not trial.undistilled for trial in story.trials)
    return f" What mattered, roughly: {', '.join(several)} (fANOVA over {wording.many(weighed, 'complete distilled trial')})."


def _slices_lead(story: Story) -> str:
    if not story.slices:
        return ""
    against = wording.plain(story.slices[0].against, 30)
    failed = [wording.plain(row.name, 40) for row in story.slices if row.outcome == "fail"]
    limit = wording.percent(story.slice_max_loss, digits=0)
    if not failed:
        return f"On none of {wording.many(len(story.slices), 'slice')} is it proven more than {limit} worse than the {against}."
    return f"Proven more than {limit} worse than the {against}: {'; '.join(failed)}."


def _unseen_lead(story: Story) -> str:
    artifact = story.model("artifact")
    if artifact is None or not artifact.unseen_users:
        return ""
    return (
        f"{wording.many(artifact.unseen_users, 'test user')} took an item without a training event. The first ten of the whole "
        f"catalog hold one for {wording.percent(artifact.unseen.value)} of them; what is known of such items is their text."
    )


def _membership_lead(story: Story) -> str:
    artifact = story.model("artifact")
    if artifact is None or artifact.membership is None:
        return ""
    found = artifact.membership
    return (
        f"Shown an event the artifact learnt from and one it did not, an attacker who knows its answers picks the right "
        f"one {wording.percent(found.auc.value)} of the time; half is guessing. The same attack on neighbours that learnt from "
        f"neither says {wording.percent(found.control.value)}: what that is away from half is of the data. Measured on "
        f"{wording.many(found.users, 'user')}; a model with less to tell is not thereby private."
    )


def _grid_lead(story: Story) -> str:
    chosen = next((point for point in story.grid if point.outcome == "chosen"), None)
    if not story.grid:
        return ""
    refused = sum(point.outcome == "refused" for point in story.grid)
    tried = f"{wording.many(len(story.grid), 'point')} tried, {refused} refused."
    if chosen is None:
        return f"{tried} None was chosen."
    blocks = f"{wording.percent(chosen.keep_blocks, digits=0)} of the blocks, " if chosen.keep_blocks < 1 else ""
    rounded = " that it was trained with" if chosen.recovery == "rounded" else ""
    return (
        f"{tried} Chosen: {blocks}{wording.percent(chosen.keep_ffn, digits=0)} of the feed-forward units, "
        f"{wording.percent(chosen.keep_heads, digits=0)} of the heads, "
        f"{wording.percent(chosen.keep_neighbours, digits=0)} of the neighbours, "
        f"{chosen.table_bits}-bit item table{rounded}, {wording.size(chosen.bytes)}, "
        f"{wording.percent(chosen.change.value, signed=True)} NDCG@10 to the float student."
    )


def _data_lead(story: Story) -> str:
    flow = story.data
    if flow is None:
        return ""
    return (
        f"{wording.many(flow.rows, 'row')} in: {wording.count(flow.accepted)} accepted, {wording.count(flow.quarantined)} "
        f"quarantined ({wording.percent(_ratio(flow.quarantined, flow.rows))}). Kept for learning and testing: "
        f"{wording.count(flow.kept)}, of {wording.many(flow.users, 'user')} and {wording.many(flow.items, 'item')}."
    )


def _steps_lead(story: Story) -> str:
    if not story.steps:
        return ""
    seconds = sum(step.seconds for step in story.steps if present(step.seconds))
    reused = sum(step.reused for step in story.steps)
    told = f"{wording.many(len(story.steps), 'step')} in {wording.duration(seconds)}; {reused} found in the store and reused."
    if story.cost is None:
        return told
    told += f" The night cost {wording.money(story.cost, story.currency)}"
    if story.cost_since_promotion is None:
        return f"{told}."
    since = wording.money(story.cost_since_promotion, story.currency)
    whose = "this champion cost" if story.decision == "PROMOTE" else "all nights since the last promotion"
    return f"{told}; {whose} {since}."


def _ndcg(model: ModelRow) -> float | None:
    return model.estimate("ndcg_at_10").value


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if present(part) and present(whole) and whole else None


def _change(value: float | None, reference: float | None) -> float | None:
    ratio = _ratio(value, reference)
    return None if ratio is None else ratio - 1


def _factor(factor: float | None, gain: str, loss: str, teacher: str) -> str:
    if factor is None or factor == 0:
        return f"the teacher’s: {teacher}"
    amount = wording.times(factor if factor >= 1 else 1 / factor)
    return f"{amount} {gain if factor >= 1 else loss} than the teacher’s {teacher}"


def _title(text: str) -> str:
    """A text from the data as the page shows it."""
    return wording.plain(text) or "(no text)"


def _sentence(text: str) -> str:
    return wording.plain(text, 600).replace(" %", "\N{NO-BREAK SPACE}%")


def _origin(digest: str, lineage: Sequence[LineageNode]) -> str:
    """What an object is called, or the beginning of its digest when it is not of this night."""
    return next((_object(node) for node in lineage if node.digest == digest), digest[:12])


def _object(node: LineageNode) -> str:
    name = pedigree.NAMES.get(node.step, node.step)
    return f"earlier {name}" if node.earlier else f"{name} {node.name}".strip()


def _figure(picture: Picture) -> Markup:
    """The picture, labelled. Its SVG is our own drawing, in which matplotlib has escaped every text."""
    return Markup('<div class="picture" role="img" aria-label="{}">{}</div>').format(picture.alt, Markup(picture.svg))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {name: getattr(wording, name) for name in _WORDED}
    filters |= {"title": _title, "sentence": _sentence, "figure": _figure, "origin": _origin, "object": _object}
    filters["users"] = told
    environment.filters |= filters
    environment.tests["present"] = present
    environment.globals |= {
        "METRICS": METRICS,
        "CUTOFFS": CUTOFFS,
        "MOST_FILES": MOST_FILES,
        "MOST_EXAMPLES": MOST_EXAMPLES,
        "MOST_TITLES": MOST_TITLES,
        "WITHHELD": WITHHELD,
        "FEW": FEW,
        "FEWEST": FEWEST,
    }
    return environment
