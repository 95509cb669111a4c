"""Writes deployments/locks/: what each installation consists of, every package with its version and the hashes of its files.

    python deployments/lock.py            writes them
    python deployments/lock.py --check    asks the index again: are there other files behind the locked versions now?

Versions are those of constraints.txt, and who needs whom is read from the packages as they are installed here, so it runs
in the environment that `make lock` resolved. Two locks stand beside the product and resolve on their own, newest first:
`torch-cuda`, PyPI's build of torch and what only it needs, and `audit`, the programs of `make audit` and `make sbom`.
"""

import io
import json
import re
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email import message_from_bytes
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

HERE = Path(__file__).resolve().parent
LOCKS = HERE / "locks"
INDEX = "https://pypi.org/simple"
TORCH_CPU = "https://download.pytorch.org/whl/cpu/torch/"
PATIENCE = 60.0  # seconds for one answer

Requires = Callable[[str], Iterable[str]]
"""What a package needs, by its name: the lines of Requires-Dist."""


@dataclass(frozen=True)
class Installation:
    """Something that is installed from a lock of its own: extras of the project, or packages."""

    name: str
    what: str
    extras: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


# setuptools builds the project itself: in no installation is anything fetched that a lock does not name.
INSTALLATIONS = (
    Installation("development", "`make`: the factory and its tests", ("flows", "minilm", "lora", "servers", "dask", "dev"), ("setuptools",)),
    Installation("factory", "Dockerfile.factory: nights", ("flows", "minilm", "lora", "kubernetes", "s3"), ("setuptools",)),
    Installation("serving", "Dockerfile.serving: `recsys serve`", ("serve",), ("setuptools",)),
    Installation("servers", "Dockerfile.servers: Prefect's and MLflow's", (), ("prefect", "mlflow", "boto3", "psycopg2-binary")),
)  # fmt: skip
AUDIT = ("pip-audit==2.10.1", "cyclonedx-bom==7.5.0")

_MACHINES = ("x86_64", "aarch64")
_ABIS = {(tag.interpreter, tag.abi) for tag in cpython_tags((3, 11), ["cp311"], ["any"])} | {
    (tag.interpreter, tag.abi) for tag in compatible_tags((3, 11), "cp311", ["any"])
}
_PYTHONS = ("3.11.0", "3.11.14")  # the oldest, which has less of its own, and a new one
_ENVIRONMENT = {
    "implementation_name": "cpython", "os_name": "posix", "platform_python_implementation": "CPython",
    "platform_system": "Linux", "python_version": "3.11", "sys_platform": "linux",
}  # fmt: skip


# -- who needs whom


def asked(installation: Installation) -> list[Requirement]:
    """What an installation begins with: the project's own dependencies, those of its extras, further packages."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    found = [Requirement(each) for each in installation.packages]
    todo, seen = list(installation.extras), set[str]()
    if todo:
        found += map(Requirement, project["dependencies"])
    while todo:
        if (extra := todo.pop()) in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            if canonicalize_name(requirement.name) == project["name"]:
                todo += requirement.extras
            else:
                found.append(requirement)
    return found


def closure(roots: Iterable[Requirement], requires: Requires) -> dict[str, SpecifierSet]:
    """Everything that is needed, by canonical name, with all that is asked of its version."""
    wanted: dict[str, SpecifierSet] = {}
    todo = [(each, "") for each in roots]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement, of_extra = todo.pop()
        if not _applies(requirement, of_extra):
            continue
        name = canonicalize_name(requirement.name)
        wanted[name] = wanted.get(name, SpecifierSet()) & requirement.specifier
        for extra in {"", *requirement.extras} - {each for known, each in seen if known == name}:
            seen.add((name, extra))
            todo += [(Requirement(line), extra) for line in requires(name)]
    return wanted


def _applies(requirement: Requirement, extra: str) -> bool:
    """On any of the machines, with any of the Pythons: a lock serves them all."""
    return requirement.marker is None or any(
        requirement.marker.evaluate(
            _ENVIRONMENT
            | {"implementation_version": python, "python_full_version": python}
            | {"extra": extra, "platform_machine": machine}
        )
        for machine in _MACHINES
        for python in _PYTHONS
    )


def constraints() -> dict[str, str]:
    """Version by canonical name, of constraints.txt."""
    lines = [line.strip() for line in (HERE / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def members(installation: Installation) -> dict[str, str]:
    """Version by name of all that an installation consists of, read from what is installed here."""
    locked = constraints()

    def requires(name: str) -> Iterable[str]:
        try:
            found = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{name} is needed for {installation.what} and is not installed here: run `make lock`")
        if Version(found.version).public != locked.get(name):
            sys.exit(f"{name} {found.version} is installed, constraints.txt has {locked.get(name)}: run `make lock`")
        return found.requires or ()

    return {name: locked[name] for name in closure(asked(installation), requires)}


def newest(roots: list[Requirement], given: dict[str, str]) -> dict[str, str]:
    """Version by name: the newest that everybody allows, of wheels alone. What is in `given` stays as it is.

    No backtracking: a version that turns out not to be allowed is replaced and all begins again with what is known by then.
    """
    chosen = given | {each.name: newest_version(each.name, each.specifier) for each in roots}

    def requires(name: str) -> Iterable[str]:
        if name not in chosen:
            chosen[name] = newest_version(name, SpecifierSet())
        return [] if name in given else remote_requires(name, chosen[name])

    while True:
        wanted = closure(roots, requires)
        wrong = [name for name, allowed in wanted.items() if not allowed.contains(chosen[name], prereleases=True)]
        if not wrong:
            return {name: chosen[name] for name in wanted if name not in given}
        if stuck := [name for name in wrong if name in given]:
            sys.exit(f"{stuck} of constraints.txt are not what {', '.join(map(str, roots))} can work with")
        chosen |= {name: newest_version(name, wanted[name]) for name in wrong}


# -- the index


@dataclass(frozen=True)
class Wheel:
    """One file of the index that fits."""

    version: Version
    url: str
    sha256: str


@cache
def wheels(name: str) -> tuple[Wheel, ...]:
    """Wheels of a package for CPython 3.11 on Linux, x86-64, aarch64 or any, oldest version first."""
    request = urllib.request.Request(f"{INDEX}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        files = json.load(answer)["files"]
    fitting = [
        Wheel(version, each["url"], each["hashes"]["sha256"])
        for each in files
        if not each.get("yanked") and (version := fits(each["filename"]))
    ]
    return tuple(sorted(fitting, key=lambda wheel: wheel.version))


def fits(filename: str) -> Version | None:
    """The version of a wheel that can be installed, None for any other file."""
    try:
        _, version, _, tags = parse_wheel_filename(filename)
    except (InvalidWheelFilename, InvalidVersion):
        return None
    machines = tuple(f"_{machine}" for machine in _MACHINES)
    good = any(
        (tag.interpreter, tag.abi) in _ABIS
        and (
            tag.platform == "any"
            or (tag.platform.startswith(("manylinux", "linux")) and tag.platform.endswith(machines))
        )
        for tag in tags
    )
    return version if good else None


def newest_version(name: str, allowed: SpecifierSet) -> str:
    """The newest version that is no pre-release."""
    there = [
        wheel.version for wheel in wheels(name) if allowed.contains(wheel.version) and not wheel.version.is_prerelease
    ]
    if not there:
        sys.exit(f"{INDEX} has no wheel of {name} {allowed} for CPython 3.11 on Linux")
    return str(there[-1])


class _Far(io.RawIOBase):
    """A file on the index, read piece by piece: the metadata of a wheel of 500 MB are 40 kB."""

    def __init__(self, url: str):
        self.url, self.at = url, 0
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE) as answer:
            self.size = int(answer.headers["Content-Length"])

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = (0, self.at, self.size)[whence] + offset
        return self.at

    def readinto(self, buffer: memoryview) -> int:
        end = min(self.at + len(buffer), self.size)
        if end <= self.at:
            return 0
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={self.at}-{end - 1}"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            piece = answer.read()
        buffer[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


@cache
def remote_requires(name: str, version: str) -> tuple[str, ...]:
    """Requires-Dist of a package that is not installed here, out of its wheel on the index."""
    url = next(wheel.url for wheel in wheels(name) if str(wheel.version) == version)
    with zipfile.ZipFile(io.BufferedReader(_Far(url), 1 << 17)) as wheel:
        inside = next(each for each in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", each))
        return tuple(message_from_bytes(wheel.read(inside)).get_all("Requires-Dist", []))


def cpu_builds(version: str) -> set[str]:
    """Hashes of torch's CPU wheels, from PyTorch's own index; where it cannot be asked, those the lock had."""
    try:
        with urllib.request.urlopen(TORCH_CPU, timeout=PATIENCE) as answer:
            page = answer.read().decode()
    except OSError as error:
        had = read(LOCKS / "torch-cpu.txt").get("torch", ("", ()))
        if had[0] != version:
            sys.exit(
                f"{TORCH_CPU} cannot be asked ({error}), and no lock had torch {version}: its CPU build would be refused"
            )
        print(
            f"{TORCH_CPU} cannot be asked ({error}): the hashes of torch {version} stay as they were", file=sys.stderr
        )
        return set(had[1])
    pairs = re.findall(r'href="[^"]*/([^/"#]+\.whl)#sha256=([0-9a-f]{64})"', page)
    return {sha for name, sha in pairs if (found := fits(unquote(name))) and str(found) == f"{version}+cpu"}


# -- the files


def read(path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Version and hashes by name, of a lock."""
    if not path.is_file():
        return {}
    entries = re.findall(r"(?m)^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", path.read_text())
    return {name: (version, tuple(re.findall(r"[0-9a-f]{64}", hashes))) for name, version, hashes in entries}


def entry(name: str, version: str, hashes: Iterable[str] = ()) -> str:
    """What a lock says of one package: the given hashes, or those of the index."""
    found = set(hashes) or {wheel.sha256 for wheel in wheels(name) if wheel.version == Version(version)}
    if not found:
        sys.exit(f"{INDEX} has no wheel of {name} {version} for CPython 3.11 on Linux")
    return " \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{each}" for each in sorted(found))])


def contents() -> Iterator[tuple[str, str]]:
    """Name and text of every lock.

    Torch's two builds are one version, and of two files whose hashes it may take pip prefers the one whose hash the index
    names, even to a CPU build on this disk. So each build has a lock.
    """
    locked = constraints()
    version = locked.pop("torch")
    yield "torch-cpu", text("torch for the CPU", [entry("torch", version, cpu_builds(version))])
    for each in INSTALLATIONS:
        yield each.name, lock_text(each.what, members(each))
    # torch is not among what is given, so that what is read is what PyPI's build asks for, not the one installed here.
    yield "torch-cuda", text("torch for CUDA", entries(newest([Requirement(f"torch=={version}")], locked)))
    yield "audit", lock_text("`make audit` and `make sbom`", newest([Requirement(each) for each in AUDIT], {}))


def entries(versions: dict[str, str]) -> list[str]:
    with ThreadPoolExecutor(8) as pool:
        pool.map(wheels, versions)
    return [entry(name, versions[name]) for name in sorted(versions)]


def lock_text(what: str, versions: dict[str, str]) -> str:
    """Torch is a file of its own, because it alone comes from another index."""
    first = ["-r torch-cpu.txt"] if "torch" in versions else []
    return text(what, first + entries({name: version for name, version in versions.items() if name != "torch"}))


def text(what: str, lines: list[str]) -> str:
    return "\n".join([f"# {what}. Written by `make lock`, installed by deployments/install.sh.", *lines, ""])


def changed() -> list[str]:
    """Which locked packages the index has other files of now; needs nothing of them installed."""
    found = []
    for path in sorted(LOCKS.glob("*.txt")):
        locked = read(path)
        with ThreadPoolExecutor(8) as pool:
            pool.map(wheels, locked)
        for name, (version, hashes) in locked.items():
            there = entry(name, version, cpu_builds(version) if path.stem == "torch-cpu" else ())
            if tuple(re.findall(r"[0-9a-f]{64}", there)) != hashes:
                found.append(f"{name} {version} of {path.name}")
    return found


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if found := changed():
            sys.exit(
                f"the index has other files than the locks of: {', '.join(found)}; find out why before you install"
            )
        print("the index has the files of the locks, and no others")
        return
    LOCKS.mkdir(exist_ok=True)
    for name, written in contents():
        (LOCKS / f"{name}.txt").write_text(written)
        print(f"written: {LOCKS / name}.txt")


if __name__ == "__main__":
    main()
