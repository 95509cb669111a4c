"""A data set is fetched over a real socket, checked, converted, and whole or absent."""

import hashlib
import io
import struct
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from flows.cli import fetch
from recsys.errors import ConfigError, DataError, HomeError

RATINGS_100K = "196\t242\t3\t881250949\n186\t302\t4\t891717742\n196\t1\t5\t881250900\n22\t377\t1\t881250949\n"
FLAGS = {"toy": "0|0|0|1|1|1" + "|0" * 13, "none": "1" + "|0" * 18}
MOVIES_100K = (
    f"1|Toy Story (1995)|01-Jan-1995||http://example/?a,b|{FLAGS['toy']}\n"
    f"267|unknown||||{FLAGS['none']}\n"
    f"302|Misérables, Les (1995)|01-Jan-1995||x|{FLAGS['toy']}\n"
)
RATINGS_1M = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n"
MOVIES_1M = "661::James and the Giant Peach (1996)::Animation|Children's|Musical\n1193::One Flew: Over (1975)::Drama\n"


def zipped(members):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(name, text.encode("latin-1") if isinstance(text, str) else text)
    return archive.getvalue()


SMALL_100K = zipped(
    {"ml-100k/u.data": RATINGS_100K, "ml-100k/u.item": MOVIES_100K, "../escaped": "no", "ml-100k/mku.sh": "x"}
)
SMALL_1M = zipped({"ml-1m/ratings.dat": RATINGS_1M, "ml-1m/movies.dat": MOVIES_1M})


def as_published(name, archive):
    """The data set with the checksum that this archive has."""
    return replace(fetch.DATA_SETS[name], md5=hashlib.md5(archive).hexdigest())


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """A folder and the address at which a real server on the loopback interface gives its files."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_100k_becomes_events_and_items(site, tmp_path):
    folder, address = site
    (folder / "ml-100k.zip").write_bytes(SMALL_100K)
    out = tmp_path / "new" / "data"
    assert fetch.fetch(as_published("movielens-100k", SMALL_100K), address + "/", out) == (4, 3)
    events = pq.read_table(out / "events.parquet", page_checksum_verification=True)
    assert events.schema == fetch.EVENTS
    assert events.to_pydict() == {
        "user_id": ["196", "196", "22", "186"],
        "item_id": ["1", "242", "377", "302"],
        "timestamp": [881250900, 881250949, 881250949, 891717742],
        "rating": [5.0, 3.0, 1.0, 4.0],
    }
    items = pq.read_table(out / "items.parquet")
    assert items.schema == fetch.ITEMS
    assert items.to_pydict() == {
        "item_id": ["1", "267", "302"],
        "title": ["Toy Story (1995)", "unknown", "Misérables, Les (1995)"],
        "category": ["Animation|Children's|Comedy", None, "Animation|Children's|Comedy"],
    }


def test_1m_becomes_events_and_items(site, tmp_path):
    folder, address = site
    (folder / "ml-1m.zip").write_bytes(SMALL_1M)
    fetch.fetch(as_published("movielens-1m", SMALL_1M), address, tmp_path / "out")
    events = pq.read_table(tmp_path / "out" / "events.parquet").to_pydict()
    assert events["timestamp"] == [978298413, 978300760, 978302109]
    assert events["user_id"] == ["2", "1", "1"]
    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pydict()
    assert items["title"] == ["James and the Giant Peach (1996)", "One Flew: Over (1975)"]
    assert items["category"] == ["Animation|Children's|Musical", "Drama"]


def test_nothing_but_the_two_files_is_written(site, tmp_path):
    folder, address = site
    (folder / "ml-100k.zip").write_bytes(SMALL_100K)
    fetch.fetch(as_published("movielens-100k", SMALL_100K), address, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["events.parquet", "items.parquet"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "site"]


def test_the_same_zip_gives_the_same_bytes(site, tmp_path):
    folder, address = site
    (folder / "ml-1m.zip").write_bytes(SMALL_1M)
    for name in ("a", "b"):
        fetch.fetch(as_published("movielens-1m", SMALL_1M), address, tmp_path / name)
    for file in ("events.parquet", "items.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_empty_folder_is_filled(site, tmp_path):
    folder, address = site
    (folder / "ml-1m.zip").write_bytes(SMALL_1M)
    (tmp_path / "out").mkdir()
    assert fetch.fetch(as_published("movielens-1m", SMALL_1M), address, tmp_path / "out") == (3, 2)


@pytest.mark.parametrize("kind", ["full", "file", "link"])
def test_what_is_there_is_never_overwritten(site, tmp_path, kind):
    out = tmp_path / "out"
    if kind == "full":
        out.mkdir()
        (out / "events.parquet").write_text("mine")
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"there is something already .*out\)\. Name a new folder\."):
        fetch.fetch(fetch.DATA_SETS["movielens-1m"], site[1], out)
    assert kind == "link" or (out / "events.parquet" if kind == "full" else out).read_text() == "mine"


def test_another_checksum_is_refused_before_the_zip_is_opened(site, tmp_path):
    folder, address = site
    (folder / "ml-100k.zip").write_bytes(b"PK but not the published zip")
    with pytest.raises(DataError, match=r"its md5 is [0-9a-f]{32}, published is 0e33842e24a9c977be4e0107933c0723"):
        fetch.fetch(fetch.DATA_SETS["movielens-100k"], address, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


def test_an_absent_file_and_a_closed_port_are_told(site, tmp_path):
    with pytest.raises(DataError, match=r"cannot be downloaded: .*(File not found|Not Found).*ml-1m\.zip"):
        fetch.fetch(fetch.DATA_SETS["movielens-1m"], site[1], tmp_path / "out")
    with pytest.raises(DataError, match=r"cannot be downloaded: .*refused.*name another place by --from\."):
        fetch.fetch(fetch.DATA_SETS["movielens-1m"], "http://127.0.0.1:9", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["file:///etc", "ftp://example", "", "/etc"])
def test_only_http_is_asked(tmp_path, address):
    with pytest.raises(ConfigError, match="is no http or https address"):
        fetch.fetch(fetch.DATA_SETS["movielens-1m"], address, tmp_path / "out")


def test_a_download_above_the_bound_is_not_read_to_its_end(site, monkeypatch):
    folder, address = site
    (folder / "big.zip").write_bytes(b"0" * 5_000)
    monkeypatch.setattr(fetch, "_MOST_DOWNLOADED", 1_000)
    with pytest.raises(DataError, match="its md5 is " + hashlib.md5(b"0" * 1_001).hexdigest()):
        fetch.download(f"{address}/big.zip", hashlib.md5(b"0" * 5_000).hexdigest())


def without_a_member():
    return zipped({"ml-1m/ratings.dat": RATINGS_1M})


def with_a_lying_size():
    """A bomb whose directory says that its member is small."""
    archive = bytearray(zipped({"ml-1m/ratings.dat": b"0" * 4_000_000, "ml-1m/movies.dat": MOVIES_1M}))
    true = struct.pack("<L", 4_000_000)
    while (at := archive.find(true)) >= 0:
        archive[at : at + 4] = struct.pack("<L", 10)
    return bytes(archive)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (without_a_member(), r"the zip has no ml-1m/movies\.dat"),
        (b"no zip at all", r"it is no zip that can be read.*\(ml-1m\.zip\)"),
        (SMALL_1M[: len(SMALL_1M) // 2], r"it is no zip that can be read"),
        (with_a_lying_size(), r"it is no zip that can be read|expected 4 fields"),
        (
            zipped({"ml-1m/ratings.dat": "1::2::3\n", "ml-1m/movies.dat": MOVIES_1M}),
            r"expected 4 fields \(ml-1m/ratings.dat, line 1\)",
        ),
        (
            zipped({"ml-1m/ratings.dat": RATINGS_1M + "\n" + RATINGS_1M, "ml-1m/movies.dat": MOVIES_1M}),
            r"ratings.dat, line 4",
        ),
        (zipped({"ml-1m/ratings.dat": "", "ml-1m/movies.dat": MOVIES_1M}), r"expected 4 fields .*line 1"),
        (
            zipped({"ml-1m/ratings.dat": "1::2::3::soon\n", "ml-1m/movies.dat": MOVIES_1M}),
            r"a rating or a time is no number.*ratings.dat",
        ),
    ],
)
def test_a_zip_that_does_not_hold_what_it_should_is_refused(site, tmp_path, archive, message):
    folder, address = site
    (folder / "ml-1m.zip").write_bytes(archive)
    with pytest.raises(DataError, match=message):
        fetch.fetch(as_published("movielens-1m", archive), address, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


def test_a_member_above_the_bound_is_refused(monkeypatch):
    monkeypatch.setattr(fetch, "_MOST_UNPACKED", len(RATINGS_1M) - 1)
    with pytest.raises(DataError, match=r"it unpacks to more than 64 bytes \(ml-1m/ratings.dat\)"):
        fetch.convert(fetch.DATA_SETS["movielens-1m"], SMALL_1M)


def test_a_place_that_cannot_be_written_is_told(site, tmp_path):
    folder, address = site
    (folder / "ml-1m.zip").write_bytes(SMALL_1M)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.raises(HomeError, match=r"cannot be made: (File exists|Not a directory) .*Name another\."):
        fetch.fetch(as_published("movielens-1m", SMALL_1M), address, blocked / "out")


def test_the_published_checksums():
    assert {name: (d.file, d.md5) for name, d in fetch.DATA_SETS.items()} == {
        "movielens-100k": ("ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"),
        "movielens-1m": ("ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906"),
    }


@pytest.fixture
def cli():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(fetch.command)
    return partial(CliRunner().invoke, app, catch_exceptions=True)


def test_the_command_takes_its_source_from_the_option_or_the_environment(cli, site, tmp_path, monkeypatch):
    folder, address = site
    (folder / "ml-1m.zip").write_bytes(SMALL_1M)
    monkeypatch.setitem(fetch.DATA_SETS, "movielens-1m", as_published("movielens-1m", SMALL_1M))
    by_option = cli(["movielens-1m", str(tmp_path / "a"), "--from", address])
    by_environment = cli(["movielens-1m", str(tmp_path / "b")], env={"RECSYS_FETCH_FROM": address})
    for result, name in ((by_option, "a"), (by_environment, "b")):
        assert result.exit_code == 0, result.output
        assert "research use" in result.output
        assert "3 events and 2 items" in result.output
        assert f"recsys nightly --events {tmp_path / name / 'events.parquet'}" in result.output


def test_an_unknown_data_set_names_the_known_ones(cli, tmp_path):
    error = cli(["movielens-20m", str(tmp_path / "out")]).exception
    assert isinstance(error, ConfigError)
    assert str(error) == "there is no data set 'movielens-20m'. Choose one of movielens-100k, movielens-1m."
