"""What a check finds: a tone, a sentence, and the command that mends it."""

from dataclasses import dataclass
from typing import Literal

Tone = Literal["green", "yellow", "red"]


@dataclass(frozen=True)
class Finding:
    """green: well; yellow: a person should know, nothing is lost yet; red: nights, models or data are at risk."""

    tone: Tone
    sentence: str
    mend: str = ""  # a command, or what to do in words; empty when there is nothing to do
    beyond: Literal["look", "untold", "hidden"] = "look"  # what becomes of the checks that need this one


def well(sentence: str) -> Finding:
    """Nothing to do."""
    return Finding("green", sentence)


def doubtful(sentence: str, mend: str) -> Finding:
    """A person should know."""
    return Finding("yellow", sentence, mend)


def not_yet(sentence: str, mend: str) -> Finding:
    """Nothing is there to be looked at."""
    return Finding("yellow", sentence, mend, beyond="hidden")


def ill(sentence: str, mend: str) -> Finding:
    """Something must be done."""
    return Finding("red", sentence, mend, beyond="untold")


def untold(name: str, mend: str) -> Finding:
    """It rests on another check, which is red."""
    return Finding("yellow", f"cannot be told before this is mended: {name}", mend, beyond="untold")


def several(things: list[str], most: int = 3) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more
