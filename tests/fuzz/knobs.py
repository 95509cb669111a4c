"""What may be wrong with words of a command line: `--set`, `--preset`, `--columns`, `--as-of`."""

import json
from random import Random

from recsys.config import NightConfig
from tests.fuzz import texts
from tests.fuzz.mutator import Stage, Words, mutator

WORDS = Stage.COLUMNS
KNOBS = [f"{name}.{knob}" for name, kind in NightConfig.model_fields.items() for knob in kind.annotation.model_fields]
MEANT = [
    "events.min_rating",
    "events.event_weights",
    "events.max_quarantined",
    "events.max_user_events",
    *[k for k in KNOBS if k[:5] == "data."],
]
"""Knobs whose values are also tried in the building of a dataset."""


def knob(rng: Random) -> str:
    """Some knob; half of the time one that a dataset is built by."""
    return rng.choice(rng.choice((KNOBS, MEANT)))


def say(one: Words, rng: Random, value: str) -> None:
    """One more word that gives some knob a value."""
    one.words.append(f"{knob(rng)}={value}")


@mutator(WORDS, "set")
def wrong_type(one: Words, rng: Random) -> None:
    say(
        one,
        rng,
        rng.choice(
            (
                "true",
                "null",
                "[]",
                "{}",
                '""',
                '"8"',
                "[1]",
                "many",
                "[null]",
                '{"a":1}',
                "8.0",
                "8.5",
                "'8'",
                "yes",
                "[[8]]",
            )
        ),
    )


@mutator(WORDS, "set")
def at_the_bounds(one: Words, rng: Random) -> None:
    say(
        one,
        rng,
        rng.choice(
            (
                "0",
                "-0",
                "-1",
                "1",
                "2",
                "1e-300",
                "0.9999999999999999",
                "1.0000000000000002",
                "-0.0",
                "1000",
                "1001",
                "1024",
                "1025",
            )
        ),
    )


@mutator(WORDS, "set")
def huge_number(one: Words, rng: Random) -> None:
    numbers = (2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30))
    say(one, rng, rng.choice((*map(str, numbers), "1e18", "1e19", "1e308", "1e309", "9" * 4300, "9" * 5000, "1e-5000")))


@mutator(WORDS, "set")
def no_number(one: Words, rng: Random) -> None:
    say(
        one,
        rng,
        rng.choice(("NaN", "nan", "Infinity", "-Infinity", "inf", "[NaN]", '{"view": NaN}', '{"view": Infinity}')),
    )


@mutator(WORDS, "set")
def digits_of_other_scripts(one: Words, rng: Random) -> None:
    say(
        one,
        rng,
        rng.choice(
            (
                "٣",
                "１２",
                "𝟘𝟙",
                "Ⅷ",
                "1_000",
                "1,000",
                "0x10",
                "0b11",
                "1e1",
                " 8 ",
                "8\n",
                "\u00a08",
                "+8",
                "08",
                "½",
                "−1",
            )
        ),
    )


@mutator(WORDS, "set")
def deep_value(one: Words, rng: Random) -> None:
    depth = rng.choice((10, 900, 1100, 50_000))
    say(one, rng, rng.choice(("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)))


@mutator(WORDS, "set")
def long_value(one: Words, rng: Random) -> None:
    say(
        one,
        rng,
        rng.choice(
            (
                "x" * 100_000,
                "[" + "1," * 50_000 + "1]",
                '"' + "é" * 50_000 + '"',
                json.dumps({str(n): 1 for n in range(5000)}),
            )
        ),
    )


@mutator(WORDS, "set")
def hostile_value(one: Words, rng: Random) -> None:
    value = rng.choice((*texts.HOSTILE, *texts.CONTROL, "\udcff", "\ud800"))
    say(
        one,
        rng,
        rng.choice(
            (value, json.dumps(value), json.dumps({value: 1}), json.dumps([value]), '"\\ud800"', '{"\\udfff": 1}')
        ),
    )


@mutator(WORDS, "set")
def unknown_knob(one: Words, rng: Random) -> None:
    known = knob(rng)
    section, _, name = known.partition(".")
    names = (f"{section}.{name[:-1]}", f"{section}s.{name}", f"{section}.{name}.x", f"{section}.__class__", f"{section}.model_config",
             f"{section}.{name.upper()}", f"model_fields.{name}", f"{rng.choice(texts.HOSTILE)}.{name}", f"{section}.{'x' * 50_000}")  # fmt: skip
    one.words.append(f"{rng.choice(names)}=1")


@mutator(WORDS, "set")
def malformed_word(one: Words, rng: Random) -> None:
    one.words.append(
        rng.choice(
            (
                "",
                "=",
                ".",
                ".=",
                "a=1",
                "a.b",
                "=1",
                "teacher.=1",
                ".epochs=1",
                "teacher.epochs:3",
                "\0",
                "\udcff=1",
                "x" * 99_999,
            )
        )
    )


@mutator(WORDS, "set")
def spaces_around(one: Words, rng: Random) -> None:
    one.words.append(
        rng.choice(
            (
                " teacher.epochs=3",
                "teacher.epochs =3",
                "teacher.epochs= 3",
                "teacher . epochs=3",
                "teacher.epochs=3 ",
                "\u3000teacher.epochs=3",
            )
        )
    )


@mutator(WORDS, "set")
def repeated_word(one: Words, rng: Random) -> None:
    name = knob(rng)
    one.words += [f"{name}={rng.choice((1, 2, 0.5))}" for _ in range(rng.choice((2, 500)))]


@mutator(WORDS, "set")
def weights_of_events(one: Words, rng: Random) -> None:
    weights = (
        '{"view": -1}',
        '{"view": 1e300}',
        '{"view": 0}',
        '{"": 1}',
        '{"view": 1e-300}',
        '{"view": null}',
        '{"view": 1, "view": 0}',
        "{}",
    )
    one.words.append(f"events.event_weights={rng.choice(weights)}")


@mutator(WORDS, "set")
def another_preset(one: Words, rng: Random) -> None:
    one.preset = rng.choice(("standard", "large", "", "QUICK", "fast", "quick ", "\x1b[31m", "x" * 10_000, "\udcff"))


@mutator(WORDS, "columns")
def odd_pairs(one: Words, rng: Random) -> None:
    pairs = ("user_id=", "=x", "user_id", "user_id==x", "user_id=a=b", ",", "item_id=item_id", "item=x", "user_id=a,user_id=b", "user_id=item_id",
             "user_id=user_id,item_id=user_id", "timestamp=user_id", "item_id=\x1b[31m", "item_id=" + "x" * 50_000, "title=item_id", "\udcff=\udcff")  # fmt: skip
    one.words[0] += "," + rng.choice(pairs)


@mutator(WORDS, "as_of")
def odd_moment(one: Words, rng: Random) -> None:
    moments = (
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "0001-01-01",
        "9999-12-31",
        "2023-W46",
        "20231114",
        "2023-11-14T22",
        "24:00",
    )
    one.words[0] = rng.choice((*moments, *texts.TIMES, *texts.HOSTILE, *texts.BLANK, "2023-11-14" * 5000, "\udcff"))
