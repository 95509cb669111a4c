"""fsck: everything a home relies on, read and compared; what is wrong is told with what mends it, or mended.

Checks come in the order in which things rest on each other, and what one finds is mended before the next one looks.
No check brings down another: what one raises is its own line.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from recsys.errors import RecsysError
from tasks import check_registry, check_store
from tasks.adapters.scrub import Scrubbed
from tasks.fault import Fault, Line
from tasks.workshop import Workshop

Check = Callable[[Workshop], Iterable[Fault]]


def check_home(workshop: Workshop, scrubbed: Scrubbed, *, repair: bool) -> Iterator[Line]:
    """Every fault, as it is found. `scrubbed` is what reading the store came to."""
    checks: tuple[Check, ...] = (
        partial(check_store.objects, scrubbed=scrubbed),
        check_store.heads,
        check_store.databases,
        check_store.vault,
        check_store.servers,
        check_store.moved,
        check_registry.mirror,
        check_registry.ledger,
        check_registry.deleted_champion,
        check_registry.aliases,
        check_registry.kept_versions,
        check_registry.champion_loads,
    )
    for check in checks:
        for fault in _faults(check, workshop):
            yield _mended(fault) if repair and fault.repair else Line(fault)


def _faults(check: Check, workshop: Workshop) -> list[Fault]:
    try:
        return list(check(workshop))
    except RecsysError as error:
        return [Fault("home", f"this cannot be told: {error.what}", error.mend)]


def _mended(fault: Fault) -> Line:
    assert fault.repair is not None
    try:
        return Line(fault, fault.repair(), mended=True)
    except RecsysError as error:
        return Line(fault, f"not mended: {error}")
