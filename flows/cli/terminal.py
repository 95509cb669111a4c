"""A night's story on a terminal: the verdict in a panel, then models, gate and steps as tables."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flows.cli.tables import plain_table
from recsys import wording
from recsys.story import CriterionRow, Decision, ModelRow, Outcome, Story

INTERRUPTED = 130
"""Exit code of a command that was interrupted, as shells have it."""

WIDE = 96
"""From so many columns on, bounds stand in a column of their own."""

_TONES: dict[Decision, str] = {"PROMOTE": "green", "HOLD": "yellow", "REJECT": "red", "NO CHANGE": "cyan"}
_BADGES: dict[Outcome, tuple[str, str]] = {
    "pass": ("✓ pass", "green"),
    "unproven": ("? unproven", "yellow"),
    "fail": ("✗ fail", "bold red"),
}
_BADGE_OF_REUSE = Text("reused", style="cyan")


class Screen:
    """Where a night is told. Texts from the data are shown as they are, never read as markup."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, story: Story) -> None:
        """The whole story, as wide as the terminal."""
        self._console.print(told(story, narrow=self._console.width < WIDE))


@contextmanager
def follow(console: Console | None = None) -> Iterator[Screen]:
    """A screen for one night. An interrupt ends as a sentence and an exit code, not as a traceback."""
    screen = console or Console(highlight=False)
    try:
        yield Screen(screen)
    except KeyboardInterrupt:
        screen.print("Interrupted. What was finished is kept: the same command goes on from there.", markup=False)
        raise SystemExit(INTERRUPTED) from None


def told(story: Story, *, narrow: bool = False) -> RenderableType:
    """Panel and tables; tables that would be empty are left out. Narrow fits 80 columns."""
    parts: list[RenderableType] = [verdict_panel(story)]
    if story.models:
        parts += ["", models_table(story)]
    if story.criteria:
        parts += ["", gate_table(story, narrow=narrow)]
        parts += [""] if any(row.outcome != "pass" for row in story.criteria) else []
        parts += [_remark(row) for row in story.criteria if row.outcome != "pass" and row.sentence]
    if story.steps:
        parts += ["", steps_table(story)]
    return Group(*parts)


def verdict_panel(story: Story) -> Panel:
    """The decision, the sentence, what to do, and what the registry holds now."""
    lines = [Text(wording.plain(story.sentence, 600), style="bold")]
    if story.advice:
        lines.append(Text.assemble(("What to do: ", "bold"), wording.plain(story.advice, 600)))
    if story.cut_short:
        lines.append(Text(wording.plain(story.cut_short, 600), style="yellow"))
    if story.registry:
        lines.append(Text(wording.plain(story.registry, 600), style="dim"))
    tone = _TONES[story.decision]
    below = Text(f"{wording.plain(story.shop, 40)}, as of {wording.moment(story.as_of)}")
    return Panel(
        Text("\n").join(lines),
        title=Text(f" {story.decision} ", style=f"bold reverse {tone}"),
        title_align="left",
        subtitle=below,
        subtitle_align="right",
        border_style=tone,
        padding=(1, 2),
    )


def models_table(story: Story) -> Table:
    """Every model on the same test users; the artifact stands out."""
    table = _table("Models on the test users", "Model")
    for name in ("NDCG@10", "95 % bounds", "HR@10", "Catalog", "Size", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in story.models:
        table.add_row(*_model_cells(model), style="bold" if model.role == "artifact" else "")
    return table


def gate_table(story: Story, *, narrow: bool = False) -> Table:
    """Every criterion with its bounds, below its value when narrow; a guard that held without proof says so."""
    table = _table("Gate", "Criterion")
    table.add_column("Kind", no_wrap=True)
    for name in ("Threshold", "Value") if narrow else ("Threshold", "Value", "95 % bounds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Outcome")
    for row in story.criteria:
        value, bounds = wording.value_of(row), wording.bounds_of(row)
        stacked = f"{value}\n{bounds}" if bounds != wording.ABSENT else value
        measured = (stacked,) if narrow else (value, bounds)
        criterion = Text(wording.plain(row.name))
        table.add_row(criterion, row.kind, wording.threshold_of(row), *measured, _badge(row))
    return table


def steps_table(story: Story) -> Table:
    """What each step took and cost, and which were found in the store. The GPU's column is there when one was used."""
    table = _table("Steps", "Step")
    on_gpu = any(step.gpu_seconds for step in story.steps)
    for column in ("Time", "CPU", *(("GPU",) if on_gpu else ()), "Cost"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for step in story.steps:
        times = (step.seconds, step.cpu_seconds, *((step.gpu_seconds,) if on_gpu else ()))
        cells = (*map(wording.duration, times), wording.money(step.cost, story.currency))
        table.add_row(Text(wording.plain(step.name)), *cells, _BADGE_OF_REUSE if step.reused else "")
    totals = [_sum(step.seconds for step in story.steps), _sum(step.cpu_seconds for step in story.steps)]
    totals += [_sum(step.gpu_seconds for step in story.steps)] if on_gpu else []
    table.add_section()
    cost = wording.money(story.cost, story.currency)
    table.add_row("all", *map(wording.duration, totals), cost, "", style="bold")
    return table


def _sum(numbers: Iterable[float | None]) -> float | None:
    """Of those that there are; None without any."""
    there = [number for number in numbers if wording.present(number)]
    return sum(there) if there else None


def _table(title: str, first: str) -> Table:
    table = plain_table(title, (first,))
    table.columns[0].min_width = 14
    return table


def _model_cells(model: ModelRow) -> list[RenderableType]:
    quality = model.estimate("ndcg_at_10")
    return [
        Text(wording.plain(model.name, 40)),
        wording.decimal(quality.value),
        wording.bounds(quality),
        wording.decimal(model.estimate("hr_at_10").value),
        wording.percent(model.coverage, digits=0),
        wording.size(model.bytes),
        wording.milliseconds(model.p99_ms),
    ]


def _badge(row: CriterionRow) -> Text:
    label, tone = _BADGES[row.outcome]
    held = row.kind == "guard" and row.outcome == "pass" and not row.proven
    return Text(f"{label}, not proven" if held else label, style=tone)


def _remark(row: CriterionRow) -> Text:
    label, tone = _BADGES[row.outcome]
    return Text.assemble((f"{label[0]} ", tone), f"{wording.plain(row.name)}: {wording.plain(row.sentence, 600)}")
