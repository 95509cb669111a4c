"""The exception tree. Every error is a sentence or two for the user: what is wrong, where, how to mend it.

RecsysError
├── InputError            the user can mend it: exit code 2
│   ├── DataError         events, items or a file of users
│   │   └── LeakageError  something from after the cut would have been learnt
│   ├── ConfigError       a knob, a section, a command line
│   ├── HomeError         the home, the store's place, the disk
│   ├── LanguageModelError  a directory or hub id without a usable language model
│   └── RegistryError     the registry cannot be reached, lacks what was asked for, or contradicts its ledger
├── TrainingError         a loss that is not a number, no trial that finished
├── StoreError            an object of the store is damaged and cannot be made again here
└── ArtifactError         a published model is not what its manifest says; refused before parsing
"""

import unicodedata
from functools import partial
from typing import Any

_LONGEST = 900
"""Characters of each of the three parts of a message: what a file or a command line holds may be a megabyte."""
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are spelt with them


class RecsysError(Exception):
    """Something is wrong. `str()` of it is the whole message for the user."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        """`what` is a clause without a full stop; `where` names file, column, row or knob; `mend` is a sentence."""
        what, where, mend = _line(what), _line(where), _line(mend)
        self.what, self.where, self.mend = what, where, mend
        place = f" ({where})" if where else ""
        advice = f" {mend}" if mend else ""
        super().__init__(f"{what}{place}.{advice}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its parts: made anew from its message alone it would say it with two full stops."""
        return partial(type(self), self.what, where=self.where, mend=self.mend), ()


class InputError(RecsysError):
    """The user's input or configuration."""

    exit_code = 2


class DataError(InputError):
    """Events, items or a file of users."""


class LeakageError(DataError):
    """Something from after the cut would have been learnt."""


class ConfigError(InputError):
    """A knob, a section or a command line."""


class HomeError(InputError):
    """The home, the store's place or the disk."""


class LanguageModelError(InputError):
    """A directory or hub id without a usable language model."""


class TrainingError(RecsysError):
    """Training cannot go on."""


class StoreError(RecsysError):
    """An object of the store is damaged and cannot be made again here."""


class ArtifactError(RecsysError):
    """A published model is not what its manifest says."""


class RegistryError(InputError):
    """The registry cannot be reached, lacks what was asked for, or contradicts its ledger."""


def _line(text: str) -> str:
    """One line fit for any terminal and log: what could steer them is escaped, what is too long loses its middle."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 200]} ... {text[-150:]}"
    text = "".join(" " if character in "\r\n\t" else _shown(character) for character in text)
    return text.strip(" ")


def _shown(character: str) -> str:
    steers = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS
    return character.encode("unicode_escape").decode() if steers else character
