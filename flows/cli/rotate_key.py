"""`recsys rotate-key`: users get new tokens under another key, and the old one is worth nothing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.home import HomeOption, open_home, settings_of
from recsys import wording
from tasks.adapters.settings import Settings


def command(
    reason: Annotated[str, typer.Option(help="Kept in the vault, with your name and the time.")],
    new_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where the new key lies and stays. Default: one is made in the old one's place."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
) -> None:
    """Change the vault's key: user ids are encrypted anew and get other tokens, and what names users by the old ones is removed.

    The champion serves on, and the next night makes everything anew.
    """
    settings = settings_of(home)
    if not yes:
        typer.confirm(
            "Change the key? All objects of this home, or of the store it shares, but the models in its ledger are removed, and "
            "the next night makes them anew",
            abort=True,
        )
    from tasks.follow_key import follow_key
    from tasks.rotate_key import rotate_key
    from tasks.workshop import Workshop

    given = new_key_file.expanduser().absolute() if new_key_file else None
    followed = follow_key(settings, reason, given)
    found = followed or rotate_key(Workshop.of(open_home(home)), reason, given)
    console = Console(highlight=False, soft_wrap=True)
    if found.users is None:
        console.print("The users had gone over to the new key before; what was left to be done is done.")
    else:
        console.print(f"New tokens: {wording.many(found.users, 'user')}; {wording.size(found.bytes)} removed.")
    if found.night_seconds is not None:
        console.print(f"The next night makes everything anew: about {wording.duration(found.night_seconds)}.")
    if found.champion is not None:
        console.print(f"Version {found.champion} serves on.")
    if found.forgotten:
        console.print(
            f"Forgotten as before: {wording.many(found.forgotten, 'user')}, by the old key, which the vault keeps, encrypted under the new one."
        )
    if settings.shared:
        console.print(
            "The store of all homes has that key now."
            if followed
            else "Every other home of the store has to follow: copy the key to its host beside its own, as key.next, and run "
            "recsys rotate-key there. Until then it is refused."
        )
    for line in _left_to_do(settings, given):
        console.print(line)


def _left_to_do(settings: Settings, new_key_file: Path | None) -> list[str]:
    if new_key_file is not None:
        return [
            f"Set RECSYS_VAULT_KEY={new_key_file} now, for commands, services and workers, and start "
            f"those anew: with {settings.vault_key} this home is refused. Then destroy that file.",
            "Backups from before need the old key: destroy them, or keep it with them.",
        ]
    kept = [f"The new key is in {settings.vault_key}."]
    if not settings.keeps_key:
        kept.append(
            "Copy it to where you keep its copy: backups of this home leave it out, and those from before need the old one."
        )
    else:
        kept.append("Backups from before hold the old key and open with it: clear them if it was given away.")
    return kept
