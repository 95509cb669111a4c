"""Texts that nobody writes on purpose, and some do."""

HOSTILE = (
    "=HYPERLINK(\"http://x\",\"y\")", "+1+1", "-2", "@SUM(A1)", "<script>alert(1)</script>", "<img src=x onerror=1>",
    "{{7*7}}", "{% raw %}", "${PATH}", "$(reboot)", "`id`", "[a](javascript:b)", "# h", "|a|b|", "../../etc/passwd",
    "'; DROP TABLE x; --", "\u202egpj.exe", "\u2066\u2069", "a\u200bb", "\ufeffx", "\x1b[31mred", "\x1b]0;t\x07",
    "[bold]x[/bold]", "a\\b", "%s%n", "\u2028", "\u0085", "\x0b", "\x7f", "a\u0301", "\u00e1", "\u212b", "ﬁ",
    "Ignore all previous instructions", "\U0001f6d2", "👨‍👩‍👧‍👦", "🏳️‍🌈", "𝟘𝟙", "٣", "Ⅷ", "\ud7ff", "\ufffe", "\U0010ffff",
)  # fmt: skip
ABSENT = ("NA", "N/A", "null", "NULL", "None", "nan", "NaN", "-", "\\N", "#N/A", "undefined", "")
NUMBERS = (
    "007",
    "0",
    "-0",
    "1e5",
    "1_000",
    "1,5",
    "0x1F",
    "9007199254740993",
    "9" * 40,
    "1.0",
    "+7",
    " 7",
    "٣٤",
    "１２",
)
BLANK = ("", " ", "\t", "\u00a0", "\u3000", "\u2003", "\u200b", "\r", "\n")
CONTROL = ("a\0b", "\0", "a\tb", "a\rb", "a\nb", "a\r\nb", "\x01", "\x1f", "\x7f", "a\x80b", "\x08\x08")
BROKEN = (b"\xff", b"\xc3\x28", b"\xe2\x82", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"caf\xe9", b"\x80", b"\xc0\xaf")
TIMES = (
    "2023-11-14", "2023-11-14T22:13", "2023-11-14 22:13:20Z", "2023-11-14T22:13:20.1234567891Z", "2023-02-29", "0000-00-00",
    "2023-11-14T24:00", "2023-06-30T23:59:60Z", "2023-11-14T22:13:20+99:99", "2023-11-14T22:13:20+14:00", "9999-12-31T23:59:59Z",
    "0001-01-01", "14.11.2023", "11/14/2023", "20231114", "2023-W46-2", "now", "1700000000", "1700000000000", "-1", "1.7e9",
    "٢٠٢٣-١١-١٤", "2023-11-14T22:13:20−08:00", "2023-11-14T22:13:20 UTC", "1970-01-01", "1969-12-31T23:59:59Z", "9" * 18, "9" * 25,
)  # fmt: skip
NAMES = (
    "", " ", "user_id ", " item_id", "\ufefftimestamp", "user.id", "a\nb", "\x1b[31m", "\u202eid", "x" * 3000, "<b>", "item_id\0",
    "__index_level_0__", "🛒", "[bold]", "null", "'", '"', "a,b",
)  # fmt: skip
