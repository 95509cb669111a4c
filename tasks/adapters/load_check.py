"""A registered version loaded as a stranger would load it. Run by the registry in a process of its own.

    python -m tasks.adapters.load_check <MLflow URI> <model> <version> <digest of its files> <runtime module>

Nothing is parsed before the digest was compared.
"""

import importlib
import sys
import tempfile
from pathlib import Path

from recsys.errors import RecsysError, RegistryError
from tasks.adapters.manifest import digest_of_folder


def check(uri: str, model: str, number: str, digest: str, runtime: str) -> None:
    """Downloads, compares, verifies, replays the golden requests. Raises what is wrong."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(mlflow.artifacts.download_artifacts(f"models:/{model}/{number}", dst_path=temporary))
        folders = [path for path in (package / "data").iterdir() if path.is_dir()]
        found = digest_of_folder(folders[0]) if len(folders) == 1 else f"{len(folders)} folders"
        if found != digest:
            raise RegistryError(
                "its files are not those that were registered", where=f"expected {digest}, found {found}"
            )
        mlflow.pyfunc.load_model(str(package))
        importlib.import_module(runtime).Runtime.open(folders[0]).check_golden()


def main(arguments: list[str]) -> int:
    """0 when the version loads; else 1, and the reason is the last line on stderr."""
    try:
        check(*arguments)
    except RecsysError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return 1
    except Exception as error:  # whatever a doctored file makes a parser raise
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
