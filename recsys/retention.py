"""The knobs of housekeeping: how much of the past it leaves. No part of a night."""

from pydantic import Field

from recsys.config import Section


class RetentionConfig(Section):
    """How much of the past housekeeping leaves. Aliases, the ledger's evidence and what is served stay in any case."""

    nights: int = Field(
        14, ge=1, title="Nights", description="Newest nights that stay, with all they made, reports and batch scores"
    )
    days: float = Field(
        2, ge=0, title="Days", description="What is younger stays, so that a night that was killed goes on with it"
    )
    runs_days: int = Field(
        60,
        ge=1,
        le=36_500,
        title="Days of runs",
        description="Days that ended flow runs, their logs and artifacts stay in Prefect",
    )
