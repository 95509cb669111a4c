"""Steps of a night on the terminal while they run: one line a finished step, a bar for the one at work."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


@contextmanager
def shown(console: Console) -> Iterator[None]:
    """Shows what the steps tell their run's log. Without a terminal the same lines are printed plainly."""
    bar = Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}", style="dim", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    handler = _Steps(console, bar)
    for name in RUN_LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        with bar:
            yield
    finally:
        for name in RUN_LOGGERS:
            logging.getLogger(name).removeHandler(handler)


class _Steps(logging.Handler):
    """Records with `recsys_step` are a step's; `recsys_share` says how far it is, 1 that it is done."""

    def __init__(self, console: Console, bar: Progress) -> None:
        super().__init__(logging.INFO)
        self.console, self.bar = console, bar
        self.at_work: dict[str, TaskID] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Moves the bar, or prints a line."""
        step, share, text = (
            getattr(record, "recsys_step", None),
            getattr(record, "recsys_share", None),
            record.getMessage(),
        )
        if step is None:
            if record.levelno >= logging.WARNING:
                self.console.print(Text(f"  {text}", style="yellow"))
            return
        if share is None:
            self.console.print(
                Text.assemble((f"{step:<9} ", "bold"), (text, "yellow" if record.levelno > logging.INFO else ""))
            )
        elif share >= 1:
            self._done(step, text)
        else:
            self._move(step, share, text)

    def _move(self, step: str, share: float, text: str) -> None:
        if step not in self.at_work:
            self.at_work[step] = self.bar.add_task(step, total=1.0, text="")
        self.bar.update(self.at_work[step], completed=share, text=text)
        if not self.console.is_terminal and share > 0:
            self.console.print(Text(f"{step:<9} {share:4.0%} {text}"))

    def _done(self, step: str, text: str) -> None:
        if step in self.at_work:
            self.bar.remove_task(self.at_work.pop(step))
        self.console.print(Text.assemble((f"{step:<9} ", "bold green"), (text, "cyan" if text == "reused" else "")))
