"""Checkup of what is installed: packages against the bounds and the lock, and the environment of the servers."""

import json
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tasks.finding import Finding, doubtful, ill, several, well
from tasks.patient import Patient

LOCK = Path(__file__).parents[1] / "deployments" / "constraints.txt"
"""What was tested together; only beside the sources, not in an installed wheel."""

_OURS = "recsys-factory"
_NEEDED = ("train", "serve", "flows")  # extras that the factory cannot work without
_INSTALL = "sh deployments/install.sh development python -m pip"
_DEMANDED: Mapping[str, str] = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""Without the first a doctored model may run code, without the second the server runs whatever job it is sent."""


def versions(_: Patient) -> Finding:
    """Red outside the bounds of pyproject.toml: Prefect's server or its scheduler may fail without a word."""
    wrong = [*_out_of_bounds()]
    if wrong:
        return ill(f"{several(wrong)}: schedules may silently never fire", _INSTALL)
    if not LOCK.is_file():
        return well("all packages are within their bounds; the lock is not beside an installed package")
    locked = read_lock(LOCK)
    other = [
        f"{name} {found} is not {locked[name]}"
        for name in sorted(locked)
        if (found := _installed(name)) and Version(found).public != locked[name]
    ]
    if other:
        return doubtful(f"within the bounds, but not what was tested together: {several(other)}", _INSTALL)
    return well(f"{len(locked)} packages are those of the lock")


def environment(patient: Patient) -> Finding:
    """Whether what runs for this home refuses to unpickle models and to run jobs."""
    try:
        servers = json.loads(patient.settings.servers_file.read_bytes()) if patient.servers else {}
    except FileNotFoundError:
        servers = {}
    pids = {name: int(servers[name]["pid"]) for name in patient.servers if name in servers}
    open_to = [
        f"{name} runs with {variable} {value or 'unset'}"
        for name, pid in sorted(pids.items())
        for variable, value in _of_process(pid).items()
        if value != _DEMANDED[variable]
    ]
    if open_to:
        return ill(f"a doctored model could run code: {several(open_to)}", "recsys down && recsys up")
    return well("models are never unpickled" + (", by no server of this home" if pids else ""))


def read_lock(path: Path) -> dict[str, str]:
    """Version by canonical name, of the lines name==version."""
    pairs = (line.partition("==") for line in path.read_text().splitlines() if not line.startswith("#"))
    return {canonicalize_name(name): version.split(";")[0].strip() for name, equals, version in pairs if equals}


def _out_of_bounds() -> Iterator[str]:
    for text in distribution(_OURS).requires or ():
        wanted = Requirement(text)
        if canonicalize_name(wanted.name) == _OURS:
            continue
        needed = wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in _NEEDED)
        found = _installed(wanted.name)
        if found is None and needed:
            yield f"{wanted.name} is not installed, {wanted.specifier} is needed"
        elif found is not None and not wanted.specifier.contains(Version(found).public, prereleases=True):
            yield f"{wanted.name} {found} is not {wanted.specifier}"


def _installed(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def _of_process(pid: int) -> dict[str, str]:
    """The demanded variables as a process was started with; nothing where another user's cannot be read."""
    try:
        content = Path("/proc", str(pid), "environ").read_bytes()
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in content.split(b"\0"))
    there = {name: value for name, _, value in pairs}
    return {name: there.get(name, "") for name in _DEMANDED}
