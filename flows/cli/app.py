"""`recsys`: one command line for the factory. Knows the commands and what an error looks like; nothing else."""

import atexit
import os
import sys
from contextlib import suppress

import typer
from rich.console import Console

from flows.cli import (
    backfill,
    backup,
    card,
    doctor,
    down,
    explain,
    fetch,
    forget,
    fsck,
    gc,
    history,
    lineage,
    monitor,
    move,
    nightly,
    notify,
    plan,
    promote,
    report,
    restore,
    rollback,
    rotate_key,
    score,
    serve,
    status,
    ui,
    up,
    validate,
)
from flows.cli.prefect_refusal import of_prefect
from recsys.errors import RecsysError

app = typer.Typer(
    name="recsys",
    help="The nightly factory: from a shop's events to a small, proven recommender.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("nightly")(nightly.command)
app.command("backfill")(backfill.command)
app.command("validate")(validate.command)
app.command("score")(score.command)
app.command("explain")(explain.command)
app.command("serve")(serve.command)
app.command("promote")(promote.command)
app.command("rollback")(rollback.command)
app.command("history")(history.command)
app.command("status")(status.command)
app.command("report")(report.command)
app.command("monitor")(monitor.command)
app.command("notify")(notify.command)
app.command("doctor")(doctor.command)
app.command("lineage")(lineage.command)
app.command("card")(card.command)
app.command("up")(up.command)
app.command("down")(down.command)
app.command("ui")(ui.command)
app.command("plan")(plan.command)
app.command("backup")(backup.command)
app.command("restore")(restore.command)
app.command("forget")(forget.command)
app.command("rotate-key")(rotate_key.command)
app.command("move")(move.command)
app.command("gc")(gc.command)
app.command("fsck")(fsck.command)
app.command("fetch")(fetch.command)


def main() -> None:
    """Run a command. A RecsysError ends as one or two sentences and its exit code, never as a traceback."""
    end = _End()
    atexit.register(end)  # first, so that it is done last
    try:
        app()
    except SystemExit as ended:
        end.code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    except Exception as error:
        told = error if isinstance(error, RecsysError) else of_prefect(error)
        if told is None:
            raise
        Console(stderr=True, highlight=False).print(f"recsys: {told}", markup=False)
        end.code = told.exit_code
        sys.exit(told.exit_code)


class _End:
    """Leaves without clearing the memory, on which the interpreter would spend seconds after all that was imported."""

    code = 1  # of a traceback

    def __call__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed, by whoever read it
                stream.flush()
        os._exit(self.code)


if __name__ == "__main__":
    main()
