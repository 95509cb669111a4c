"""What people write is shown in an artifact, not obeyed."""

import pytest

from tasks.markdown import literal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("slice_long passes; 85.7 % kept", "slice_long passes; 85.7 % kept"),
        ("see [this](http://elsewhere)", r"see \[this\](http://elsewhere)"),
        ("![](http://elsewhere/seen.png)", r"!\[\](http://elsewhere/seen.png)"),
        ("<img src=x> &amp; *all*", r"\<img src=x> \&amp; \*all\*"),
        ("_so_ it `goes`", r"\_so\_ it \`goes\`"),
        ("# not a title", r"\# not a title"),
        ("a \\ b | c", r"a \\ b \| c"),
    ],
)
def test_marks_are_escaped_and_words_left_alone(text, shown):
    assert literal(text) == shown
