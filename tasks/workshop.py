"""The workshop: the places and tools of one home, for whoever works in it. Knows no orchestrator."""

from dataclasses import dataclass
from functools import cache

from tasks.adapters.ledger import Ledger
from tasks.adapters.registry import Registry
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tasks.adapters.tracking import Tracking


@dataclass(frozen=True)
class Workshop:
    """The places and tools of a home."""

    settings: Settings
    store: Store
    tracking: Tracking
    registry: Registry
    ledger: Ledger

    @classmethod
    def of(cls, settings: Settings) -> "Workshop":
        """The workshop of a home, the same for the same settings. Its databases are opened when they are asked."""
        return _workshop(settings)

    @classmethod
    def anew(cls, settings: Settings) -> "Workshop":
        """As `of`, with a connection of its own: for whoever outlives the servers it began with."""
        return _open(settings)

    @classmethod
    def here(cls) -> "Workshop":
        """The workshop of the home that the environment names."""
        return _workshop(Settings.from_environment())


@cache
def _workshop(settings: Settings) -> Workshop:
    return _open(settings)


def _open(settings: Settings) -> Workshop:
    tracking = Tracking(settings)
    registry = Registry(settings, tracking.client, lambda: tracking.experiment_id)
    return Workshop(settings, Store(settings.store), tracking, registry, Ledger(settings, registry))
