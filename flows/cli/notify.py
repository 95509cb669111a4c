"""`recsys notify`: where people are told, and whether it reaches them."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from flows.cli.home import HomeOption, make_home
from recsys.errors import ConfigError, RecsysError
from tasks.adapters.channels import FILE, Channels

_SUBJECT = "recsys: a test"
_BODY = "This is a test of recsys notify. Whoever reads it will be told when a night fails, is missed or is rejected."


def command(
    home: HomeOption = None,
    test: Annotated[bool, typer.Option("--test", help="Send one message by every channel.")] = False,
) -> None:
    """Show the channels of <home>/notify.toml. Their addresses are secrets and are never shown."""
    settings = make_home(home)
    channels = Channels.of(settings)
    if not channels.by_name():
        raise ConfigError(
            "nobody is told: there are no channels",
            where=str(settings.home / FILE),
            mend='Write a line such as slack = "https://hooks.slack.com/services/..." and chmod 600 the file.',
        )
    console = Console(highlight=False)
    failed = []
    for name, block in _blocks(channels).items():
        said = _sent(block) if test else ""
        failed += [name] if said else []
        what = f"failed: {said}" if said else "sent" if test else "configured"
        console.print(Text.assemble((f"{name.removeprefix('recsys-'):<9} ", "bold"), what))
    if failed:
        raise RecsysError(
            f"no message went out by {' and '.join(failed)}",
            where=str(settings.home / FILE),
            mend="Check the address, and whether this machine reaches it.",
        )


def _blocks(channels: Channels) -> dict:
    from flows.channels import blocks  # imports Prefect, which reads its places once

    return dict(blocks(channels))


def _sent(block: object) -> str:
    """Why it could not be sent, without the address; empty when it was."""
    try:
        with block.raise_on_failure():
            block.notify(_BODY, subject=_SUBJECT)
    except Exception as error:  # whatever httpx, Apprise or a socket raises; its text may hold the address
        return type(error).__name__
    return ""
