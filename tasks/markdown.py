"""Texts of data and people in a Markdown artifact: shown as they are, never obeyed."""

import re

_MARKS = re.compile(r"[\\`*<\[\]&~|]|(?<!\w)_|_(?!\w)|^[#>+-]")


def literal(text: str) -> str:
    """The text with every mark of Markdown and HTML escaped. An underscore within a word is none, as in slice_long."""
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", text)
