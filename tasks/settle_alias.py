"""settle: an alias that a person moved in MLflow is adopted or put back, before anybody reads who is champion.

Called at the start of every command and flow that reads the champion, by the monitor's schedule, and by serving at
each poll. Knows no orchestrator.
"""

from tasks.adapters.ledger import Settled
from tasks.announce import announce_if_heard
from tasks.workshop import Workshop


def settle_alias(workshop: Workshop) -> Settled | None:
    """What became of a hand-moved alias champion; None when it stands where the ledger says.

    Adopted after the load test, as a record that says it passed no statistical gate; put back when the test fails. That
    the champion's version was deleted is told each time (outcome "gone") and mended by nobody here. RegistryError
    when the ledger contradicts itself or MLflow cannot be reached.
    """
    settled = workshop.ledger.settle(workshop.registry.check_adoptable)
    if settled is not None and settled.outcome != "gone":
        details = {"from": settled.drift.champion, "to": settled.drift.alias, "outcome": settled.outcome}
        announce_if_heard(workshop.settings, "recsys.alias.moved", settled.sentence, details)
    return settled
