"""The locks: whole, of the tested versions, and a file that is another one is not installed."""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
PRODUCT = ("development", "factory", "serving", "servers", "torch-cpu")
LOCKS = sorted(path.stem for path in (DEPLOYMENTS / "locks").glob("*.txt"))


@pytest.fixture(scope="module")
def lock():
    """The program that writes them."""
    spec = importlib.util.spec_from_file_location("lock", DEPLOYMENTS / "lock.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["lock"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["lock"]


def test_there_is_a_lock_for_each_installation(lock):
    assert set(LOCKS) == {*PRODUCT, "torch-cuda", "audit"}
    assert {each.name for each in lock.INSTALLATIONS} == {*PRODUCT} - {"torch-cpu"}


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_a_version_with_its_hashes(name, lock):
    path = DEPLOYMENTS / "locks" / f"{name}.txt"
    there = lock.read(path)
    assert there
    assert all(hashes for _, hashes in there.values())
    said = "\n".join(lock.entry(package, version, hashes) for package, (version, hashes) in there.items())
    rest = path.read_text().replace(said, "").splitlines()
    assert all(line.startswith("# ") or line in ("", "-r torch-cpu.txt") for line in rest), "nothing else is installed"
    locked = lock.constraints()
    if name in PRODUCT:
        assert {package: version for package, (version, _) in there.items()}.items() <= locked.items()


@pytest.mark.parametrize("name", ["development", "serving"])
def test_a_lock_holds_what_is_needed_and_no_more(name, lock):
    """Of the installations that this environment has every package of; of an extra that was added the lock knows nothing yet."""
    needed = lock.members(next(each for each in lock.INSTALLATIONS if each.name == name))
    there = lock.read(DEPLOYMENTS / "locks" / f"{name}.txt")
    assert needed.keys() - {"torch"} == there.keys()
    assert ("torch" in needed) == ("-r torch-cpu.txt" in (DEPLOYMENTS / "locks" / f"{name}.txt").read_text())


@pytest.mark.parametrize(
    ("filename", "fitting"),
    [
        ("a-1.0-py3-none-any.whl", True),
        ("a-1.0-cp311-cp311-manylinux_2_28_aarch64.whl", True),
        ("a-1.0-cp39-abi3-manylinux2014_x86_64.whl", True),
        ("a-1.0-cp312-cp312-manylinux_2_28_x86_64.whl", False),
        ("a-1.0-cp311-cp311-win_amd64.whl", False),
        ("a-1.0-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("a-1.0.tar.gz", False),
    ],
)
def test_only_wheels_for_the_promised_python_and_system_are_locked(filename, fitting, lock):
    assert bool(lock.fits(filename)) is fitting


def test_what_is_needed_is_followed_through_extras_and_markers(lock):
    needs = {
        "a": ["b[more]>=2", 'w; sys_platform == "win32"', 'e; extra == "e"'],
        "b": ["c<3", 'd; extra == "more"'],
        "d": ["a", "c>=1"],
    }
    found = lock.closure([lock.Requirement("a")], lambda name: needs.get(name, ()))
    assert {name: str(asked) for name, asked in found.items()} == {"a": "", "b": ">=2", "c": "<3,>=1", "d": ""}


@pytest.mark.parametrize("harm", [None, "replaced", "added", "gone"])
def test_other_files_behind_a_locked_version_are_found(harm, lock, tmp_path, monkeypatch):
    first, second, other = (digit * 64 for digit in "123")
    locked = {"a": [first], "b": [first, second]}
    (tmp_path / "some.txt").write_text(lock.text("x", [lock.entry(name, "1.0", has) for name, has in locked.items()]))
    now = {"replaced": [first, other], "added": [first, second, other], "gone": [first]}
    there = locked | {"b": now.get(harm, locked["b"])}
    version = lock.Version("1.0")
    monkeypatch.setattr(lock, "LOCKS", tmp_path)
    monkeypatch.setattr(lock, "wheels", lambda name: [lock.Wheel(version, "", sha) for sha in there[name]])
    assert lock.changed() == (["b 1.0 of some.txt"] if harm else [])


# -- what is refused


def wheel(folder: Path, content: str) -> str:
    """A package `tiny` of one line, and its hash."""
    about = "tiny-1.0.dist-info"
    files = {
        "tiny.py": content,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as written:
        for name, text in files.items():
            written.writestr(name, text)
        written.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"]))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def install(folder: Path, line: str) -> subprocess.CompletedProcess:
    """What install.sh does with a lock of this one line and no index but the folder."""
    (folder / "locks").mkdir()
    (folder / "locks" / "tiny.txt").write_text(line)
    (folder / "install.sh").write_bytes((DEPLOYMENTS / "install.sh").read_bytes())
    alone = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_NO_CACHE_DIR": "1"}
    words = ["sh", str(folder / "install.sh"), "tiny", sys.executable, "-m", "pip"]
    environment = os.environ | alone | {"PIP_TARGET": str(folder / "there")}
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)


def test_a_file_that_is_the_locked_one_is_installed(tmp_path):
    done = install(tmp_path, f"tiny==1.0 --hash=sha256:{wheel(tmp_path, 'good = 1')}\n")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there" / "tiny.py").read_text() == "good = 1"


def test_another_file_of_the_same_name_and_version_is_refused(tmp_path):
    good = wheel(tmp_path, "good = 1")
    wheel(tmp_path, "evil = 1")
    done = install(tmp_path, f"tiny==1.0 --hash=sha256:{good}\n")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "there").exists()


def test_a_line_without_a_hash_is_refused(tmp_path):
    wheel(tmp_path, "good = 1")
    done = install(tmp_path, "tiny==1.0\n")
    assert done.returncode != 0
    assert "Hashes are required" in done.stderr


# -- the audit


def program(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return str(folder / name)


@pytest.mark.parametrize(
    ("does", "code", "said"),
    [
        ("exit 0", 0, "no vulnerability is known of what constraints.txt names"),
        ("echo 'jinja2 3.1.6 CVE-0'; exit 1", 1, "jinja2 3.1.6 CVE-0"),
        ("echo 'pypi.org: no route' >&2; exit 1", 2, "no answer, so nothing is known of what constraints.txt names: pypi.org: no route"),
    ],
)  # fmt: skip
def test_an_audit_that_could_not_ask_does_not_pass(does, code, said, tmp_path):
    words = ["sh", str(DEPLOYMENTS / "audit.sh"), program(tmp_path, "pip-audit", does)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stdout + done.stderr


def test_the_audit_asks_about_every_version_that_is_locked(tmp_path, lock):
    words = ["sh", str(DEPLOYMENTS / "audit.sh"), program(tmp_path, "pip-audit", f'echo "$@" >> {tmp_path}/asked')]
    subprocess.run(words, capture_output=True, check=True)
    asked = (tmp_path / "asked").read_text()
    lists = [Path(path) for path in re.findall(r"-r (\S+)", asked)]
    about = {
        (lock.canonicalize_name(name), version)
        for path in lists
        for name, version in re.findall(r"(?m)^([\w.-]+)==([\w.]+)", path.read_text())
    }
    locked = {
        (name, version)
        for path in (DEPLOYMENTS / "locks").glob("*.txt")
        for name, (version, _) in lock.read(path).items()
    }
    assert locked <= about
    assert asked.count("--strict") == len(lists), "a package that is not found is no package without vulnerabilities"
