"""What the vault takes for many users: to keep them, to keep them again, to name them.

python -m benchmarks.vault [--users 1000000]
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from tasks.adapters.vault import Vault


def main() -> None:
    """Prints seconds, and the size of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    number = parser.parse_args().users
    with TemporaryDirectory() as temporary:
        vault = Vault(Path(temporary))
        user_ids = pa.array([f"user-{n:08}" for n in range(number)])
        users = pa.table({"token": vault.door.tokens(user_ids), "user_id": user_ids})
        tokens = users["token"].to_pylist()
        with _timed("kept"):
            vault.remember(users)
        with _timed("kept again"):
            vault.remember(users)
        with _timed("named"):
            assert sum(1 for _ in vault.each_user_id(tokens)) == number
        table = sum(path.stat().st_size for path in Path(temporary).glob("users.sqlite*"))
        print(f"{number:,} users, {table / number:.0f} bytes each")


@contextmanager
def _timed(what: str) -> Iterator[None]:
    begun, worked = time.perf_counter(), time.process_time()
    yield
    print(f"{what}: {time.perf_counter() - begun:.1f} s, {time.process_time() - worked:.1f} s of the processor")


if __name__ == "__main__":
    main()
