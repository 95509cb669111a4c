"""What may be wrong with a request to `recsys serve`: its JSON, its bytes, its headers."""

import json
from random import Random

from tests.fuzz import texts
from tests.fuzz.mutator import Ask, Stage, mutator

JSON, BYTES = Stage.COLUMNS, Stage.BYTES
LISTS = ("history", "session", "exclude", "allow", "categories")


def write(one: Ask) -> None:
    """The JSON as bytes."""
    if one.batch:
        one.path = "/recommend/batch"
    one.raw = json.dumps({"requests": [one.body, {}]} if one.batch else one.body).encode()


def some_list(one: Ask, rng: Random) -> list:
    """One of the lists of the request, made where there is none."""
    name = rng.choice(LISTS)
    found = one.body.get(name)
    one.body[name] = found if isinstance(found, list) else []
    return one.body[name]


@mutator(JSON, "ask")
def wrong_json_type(one: Ask, rng: Random) -> None:
    values = (None, True, 1, -1.5, "x", [], {}, [[]], [None], [1], [{}], {"a": []}, ["item-1", 2])
    one.body[rng.choice((*LISTS, "k"))] = rng.choice(values)


@mutator(JSON, "ask")
def extreme_k(one: Ask, rng: Random) -> None:
    one.body["k"] = rng.choice(
        (
            0,
            -1,
            1,
            30,
            31,
            1000,
            1001,
            2**63,
            2**64,
            10**400,
            1.0,
            1.5,
            1e308,
            float("nan"),
            float("inf"),
            "10",
            "٣",
            True,
            "1e3",
        )
    )


@mutator(JSON, "ask")
def unknown_ids(one: Ask, rng: Random) -> None:
    some_list(one, rng).extend(
        rng.choice(("never heard of", "item-0", "item-999", " item-1", "ITEM-1", "item-1\u200b"))
        for _ in range(rng.choice((1, 50)))
    )


@mutator(JSON, "ask")
def hostile_ids(one: Ask, rng: Random) -> None:
    some_list(one, rng).append(
        rng.choice((*texts.HOSTILE, *texts.CONTROL, *texts.BLANK, "\ud800", "x" * 512, "x" * 513, "🛒" * 512))
    )


@mutator(JSON, "ask")
def doubled_ids(one: Ask, rng: Random) -> None:
    found = some_list(one, rng)
    found.append("item-3")
    one.body["history"] = found * rng.choice((2, 100)) if one.body.get("history") is found else ["item-3"] * 9


@mutator(JSON, "ask")
def long_list(one: Ask, rng: Random) -> None:
    some_list(one, rng).extend(f"item-{n % 40}" for n in range(rng.choice((100, 101, 10_000, 10_001))))


@mutator(JSON, "ask")
def everything_excluded(one: Ask, rng: Random) -> None:
    one.body[rng.choice(("exclude", "history"))] = [f"item-{n}" for n in range(1, rng.choice((30, 31)))]


@mutator(JSON, "ask")
def filters_that_disagree(one: Ask, rng: Random) -> None:
    one.body |= {
        "allow": rng.choice(([], ["item-2"], ["x"], None)),
        "categories": rng.choice(([], ["mug"], ["lamp|mug"], ["sofa"], ["lamp", "lamp"], None)),
    }


@mutator(JSON, "ask")
def unknown_field(one: Ask, rng: Random) -> None:
    one.body[rng.choice(("user_id", "K", "__proto__", "", "k ", "x" * 5000, "\x1b[31m", "\ud800", "requests"))] = (
        rng.choice((1, None, "x"))
    )


@mutator(JSON, "ask")
def odd_batch(one: Ask, rng: Random) -> None:
    one.batch = True
    one.body = rng.choice(({"k": 1000}, {"history": ["item-1"] * 500}, one.body))


@mutator(BYTES, "ask")
def bytes_that_are_no_json(one: Ask, rng: Random) -> None:
    one.raw = rng.choice(
        (
            b"",
            b"{",
            b"[]",
            b"null",
            b"1",
            b'"x"',
            b"{}{}",
            b"{'k':1}",
            b'{"k":1,}',
            b"\0",
            b"NaN",
            b"\xff",
            b"k=10",
            one.raw[:-1],
            b"<x/>",
        )
    )


@mutator(BYTES, "ask")
def bytes_spoilt(one: Ask, rng: Random) -> None:
    place, junk = (
        rng.randint(0, len(one.raw)),
        rng.choice((b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"}", b"\\", b"\\u12", b"\xef\xbb\xbf")),
    )
    one.raw = one.raw[:place] + junk + one.raw[place:]


@mutator(BYTES, "ask")
def other_json_encoding(one: Ask, rng: Random) -> None:
    one.raw = one.raw.decode(errors="replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le")))


@mutator(BYTES, "ask")
def deep_json(one: Ask, rng: Random) -> None:
    depth = rng.choice((50, 900, 1100, 100_000))
    one.raw = rng.choice(
        (b"[" * depth, b'{"history":' + b"[" * depth + b"]" * depth + b"}", b'{"a":' * depth + b"1" + b"}" * depth)
    )


@mutator(BYTES, "ask")
def doubled_keys(one: Ask, rng: Random) -> None:
    one.raw = b'{"k": 2, "k": %s, "history": [], "history": ["item-4"]}' % rng.choice((b"3", b"0", b"null", b'"x"'))


@mutator(BYTES, "ask")
def long_digits(one: Ask, rng: Random) -> None:
    one.raw = b'{"k": %s}' % (rng.choice((b"1", b"0.", b"1e", b"-")) + b"9" * rng.choice((20, 400, 4301, 100_000)))


@mutator(BYTES, "ask")
def large_body(one: Ask, rng: Random) -> None:
    most = rng.choice((1 << 20, (8 << 20) - 100, 8 << 20, (8 << 20) + 1))
    one.raw = rng.choice((one.raw + b" " * most, b'{"history": ["' + b"x" * most + b'"]}'))


@mutator(BYTES, "ask")
def other_content_type(one: Ask, rng: Random) -> None:
    kinds = (
        b"text/plain",
        b"",
        b"application/json; charset=utf-16",
        b"multipart/form-data",
        b"application/x-www-form-urlencoded",
        b"a/b/c",
        b"\xff",
        b"application/vnd.api+json",
    )
    one.headers = rng.choice(
        ([], [(b"content-type", rng.choice(kinds))], [*one.headers, (b"content-type", rng.choice(kinds))])
    )


@mutator(BYTES, "ask")
def other_content_length(one: Ask, rng: Random) -> None:
    n = len(one.raw)
    one.told = rng.choice(
        (
            b"0",
            b"1",
            str(n + 1).encode(),
            str(max(0, n - 1)).encode(),
            b"-1",
            b"x",
            b"",
            b"9" * 30,
            b"9" * 5000,
            b"8388609",
            b"\xb2",
            b"1, 2",
            b"0x10",
        )
    )


@mutator(BYTES, "ask")
def other_page(one: Ask, rng: Random) -> None:
    one.method = rng.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"))
    one.path = rng.choice(
        (
            "/recommend",
            "/recommend/",
            "/",
            "/recommend/batch",
            "//recommend",
            "/../etc/passwd",
            "/recommend%00",
            "/health",
            "/é",
            "/" + "x" * 5000,
        )
    )


@mutator(BYTES, "ask")
def odd_headers(one: Ask, rng: Random) -> None:
    one.headers = one.headers + rng.choice(
        ([(b"x", b"y" * 5000)] * 3, [(b"host", b"")] * 2, [(b"expect", b"100-continue")], [(b"transfer-encoding", b"chunked")], [(b"content-encoding", b"gzip")],
         [(b"cookie", b"\xff\xfe")], [(b"origin", b"http://evil")], [(b"connection", b"upgrade"), (b"upgrade", b"websocket")])
    )  # fmt: skip


@mutator(BYTES, "ask", "wire")
def broken_http(one: Ask, rng: Random) -> None:
    one.raw = rng.choice((b"GET", b"\x16\x03\x01\x02\x00", b"POST /recommend HTTP/9.9\r\n\r\n", b"\r\n" * 99, b"GET /health\r\n\r\n", b"POST  HTTP/1.1\r\n\r\n",
                          b"POST /recommend HTTP/1.1\r\nx\r\n\r\n", b"G\0T / HTTP/1.1\r\n\r\n", b"A" * 100_000, b"POST /recommend HTTP/1.1\r\n" + b"x: y\r\n" * 3000))  # fmt: skip
    one.told = b"raw"


@mutator(BYTES, "ask", "wire")
def broken_chunks(one: Ask, rng: Random) -> None:
    chunks = (
        b"5\r\nhello\r\n",
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"-1\r\n\r\n",
        b"2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}",
        b"0\r\n\r\n",
    )
    one.raw = (
        b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        + rng.choice(chunks)
    )
    one.told = b"raw"
