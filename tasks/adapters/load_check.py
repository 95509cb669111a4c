"""A registered version loaded as a stranger would load it. Run by the registry in a process of its own.

    python -m tasks.adapters.load_check <folder of the downloaded version> <digest of its files> <loader> <ms>

The process imports neither MLflow nor pandas, which is most of what loading costs: it does what `mlflow.pyfunc` does
with a version of ours, that is call the loader module with the folder of files, and refuses what would make MLflow
do more. Nothing is parsed before the digest was compared.

The latency rule is generous, because the machine may be busy: of up to five rounds of 100 single requests one must
have its p99 within twice the budget. Speed itself was judged by the gate; here only what is broken is refused.
"""

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from recsys.artifact import verify
from recsys.errors import ArtifactError, RecsysError, RegistryError
from recsys.runtime import DEFAULT_K, Runtime
from tasks.adapters.manifest import digest_of_folder

ROUNDS = 5
REQUESTS = 100  # of one round, one at a time
ALLOWANCE = 2.0  # times the budget


def check(package: Path, digest: str, loader: str, budget_ms: float) -> None:
    """Compares, verifies, replays the golden requests, takes the time. Raises what is wrong."""
    folders = [path for path in (package / "data").iterdir() if path.is_dir()]
    found = digest_of_folder(folders[0]) if len(folders) == 1 else f"{len(folders)} folders"
    if found != digest:
        what = "its files are not those that were registered"
        raise RegistryError(f"{what}{_first_fault(folders)}", where=f"expected {digest}, found {found}")
    check_packaging(package, folders[0], loader)
    served: Runtime = importlib.import_module(loader)._load_pyfunc(str(folders[0])).runtime
    check_latency(served, budget_ms)


def check_latency(runtime: Runtime, budget_ms: float) -> float:
    """The least p99 of the rounds, in ms. RegistryError when it is above twice the budget."""
    allowed, least = ALLOWANCE * budget_ms, float("inf")
    for _ in range(ROUNDS):
        least = min(least, _p99_ms(runtime))
        if least <= allowed:
            return least
    raise RegistryError(
        f"99 % of single requests take up to {least:.1f} ms in the best of {ROUNDS} rounds, "
        f"at most {allowed:g} ms are allowed (twice the budget)"
    )


def _first_fault(folders: list[Path]) -> str:
    """Which file is at fault, where an artifact's own manifest can still say so."""
    try:
        if len(folders) == 1:
            verify(folders[0])
    except ArtifactError as error:
        return f": {error.what}"
    return ""


def check_packaging(package: Path, folder: Path, loader: str) -> None:
    """RegistryError unless MLflow would call our loader with this folder and nothing else."""
    import yaml  # type: ignore[import-untyped]  # after the digest: nothing is parsed before

    try:
        document: Any = yaml.safe_load((package / "MLmodel").read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise RegistryError(f"its MLmodel cannot be read: {error}", where=str(package)) from error
    flavors: Any = document.get("flavors") if isinstance(document, dict) else None
    flavor: Any = flavors.get("python_function") if isinstance(flavors, dict) else None
    flavor = flavor if isinstance(flavor, dict) else {}
    expected = {"loader_module": loader, "data": f"data/{folder.name}"}
    if flavor.get("code") or {name: flavor.get(name) for name in expected} != expected:
        raise RegistryError(
            f"its MLmodel asks for something else than {loader}", where=str(flavor.get("loader_module"))
        )


def _p99_ms(runtime: Runtime) -> float:
    """Of one round of golden requests, in ms."""
    asked = [np.array(history, np.int32) for history in runtime.golden.histories] or [np.ones(1, np.int32)]
    taken = []
    for request in range(REQUESTS):
        start = time.perf_counter_ns()
        runtime.serve([asked[request % len(asked)]], DEFAULT_K)
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return float(np.quantile(taken, 0.99))


def main(arguments: list[str]) -> int:
    """0 when the version loads; else 1, and the reason is the last line on stderr."""
    package, digest, loader, budget_ms = arguments
    try:
        check(Path(package), digest, loader, float(budget_ms))
    except RecsysError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return 1
    except Exception as error:  # whatever a doctored file makes a parser raise
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
