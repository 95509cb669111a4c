"""Whether ids of items were given anew: then yesterday's events name other things than they did.

A title may be corrected, and keeps a word of its own then; an item whose new title shares no word with the one before is
taken for another thing.
"""

import re
from collections.abc import Sequence

from recsys import wording

_SHARE, _LEAST = 0.01, 10
"""Of the items that had a title, and how many at least: single ones are renamed for good reasons."""

_LONGEST = 40
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A sign of Chinese or Japanese is a word: they are written without blanks."""


def reused_ids(renamed: Sequence[tuple[str, str, str]], known: int) -> str | None:
    """A sentence about the id, the title before and tonight's title of the items where they differ, of `known` with both.

    None where nothing is to be said.
    """
    other = [each for each in renamed if _words(each[1]).isdisjoint(_words(each[2]))]
    if len(other) < max(_LEAST, _SHARE * known):
        return None
    item, before, now = (wording.plain(text, _LONGEST) for text in other[0])
    return (
        f"{len(other):,} of {known:,} items of earlier nights have a title that shares no word with the one before, as "
        f"{item}: {before}, now {now}; if ids were given anew, events from before name other things now: "
        "give every new thing an id that was never used"
    )


def _words(title: str) -> set[str]:
    """In small letters; of a title without any, the title itself."""
    return set(_WORD.findall(title.casefold())) or {title}
