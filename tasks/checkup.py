"""The doctor: one line for each thing that must be well for no night to be lost, with the command that mends it.

No check can bring down another: what one raises is its own red line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recsys.config import MonitorConfig
from recsys.errors import RecsysError
from recsys.wording import plain
from tasks import (
    checkup_champion,
    checkup_databases,
    checkup_install,
    checkup_machine,
    checkup_nights,
    checkup_prefect,
    checkup_secrets,
)
from tasks.adapters.settings import Settings
from tasks.finding import Finding, Tone, ill, untold, well
from tasks.patient import Patient

_CREDENTIALS = re.compile(r"(://)[^\s/@]+@")
_LONGEST = 600  # characters of a sentence
_WORSE: tuple[Tone, ...] = ("green", "yellow", "red")


@dataclass(frozen=True)
class Line:
    """What one check found."""

    name: str
    tone: Tone
    sentence: str
    mend: str


@dataclass(frozen=True)
class Checkup:
    """What all checks found, in the order in which things depend on each other."""

    home: str
    lines: tuple[Line, ...]

    @property
    def worst(self) -> Tone:
        """The worst tone of all."""
        return max((line.tone for line in self.lines), key=_WORSE.index, default="green")

    def of(self, tone: Tone) -> tuple[Line, ...]:
        """The lines of one tone."""
        return tuple(line for line in self.lines if line.tone == tone)

    def line(self, name: str) -> Line:
        """The line of a check. KeyError when there is no such check."""
        return {line.name: line for line in self.lines}[name]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"home": self.home, "worst": self.worst, "lines": [asdict(line) for line in self.lines]}


@dataclass(frozen=True)
class _Check:
    name: str
    look: Callable[[Patient], Finding | None]  # None: it does not apply to this home
    needs: str = ""  # a check before it: if that one stops, this one cannot tell


_MLFLOW, _PREFECT = "MLflow's database", "servers"

CHECKS = (
    _Check("versions", checkup_install.versions),
    _Check("environment", checkup_install.environment),
    _Check("home", checkup_machine.home),
    _Check("disk", checkup_machine.disk),
    _Check("permissions", checkup_machine.permissions),
    _Check("time zones", checkup_machine.time_zones),
    _Check(_MLFLOW, checkup_databases.mlflow),
    _Check("Prefect's database", checkup_databases.prefect),
    _Check("clock", checkup_machine.clock, _MLFLOW),
    _Check(_PREFECT, checkup_prefect.servers),
    _Check("work pool", checkup_prefect.work_pool, _PREFECT),
    _Check("worker", checkup_prefect.worker, _PREFECT),
    _Check("deployments", checkup_prefect.deployments, _PREFECT),
    _Check("next runs", checkup_prefect.next_runs, _PREFECT),
    _Check("late runs", checkup_prefect.late_runs, _PREFECT),
    _Check("zombies", checkup_prefect.zombies, _PREFECT),
    _Check("zombie automation", checkup_prefect.zombie_automation, _PREFECT),
    _Check("notifications", checkup_prefect.notifications, _PREFECT),
    _Check("data", checkup_nights.data, "home"),
    _Check("last night", checkup_nights.last_night, _MLFLOW),
    _Check("missed nights", checkup_nights.missed, _MLFLOW),
    _Check("ledger", checkup_champion.ledger, _MLFLOW),
    _Check("aliases", checkup_champion.aliases, "ledger"),
    _Check("champion", checkup_champion.champion, "ledger"),
    _Check("champion's files", checkup_champion.files, "champion"),
    _Check("champion in MLflow", checkup_champion.published, "champion"),
    _Check("forgotten users", checkup_champion.forgotten, "champion"),
    _Check("rollback", checkup_champion.rollback, "ledger"),
    _Check("secrets in Prefect", checkup_secrets.in_prefect),
    _Check("secrets in MLflow", checkup_secrets.in_mlflow, _MLFLOW),
)


def check(settings: Settings, monitor: MonitorConfig = MonitorConfig()) -> Checkup:  # noqa: B008
    """Examines a home. Nothing is changed there; it takes a few seconds at most."""
    patient = Patient(settings, monitor)
    findings: dict[str, Finding | None] = {}
    for each in CHECKS:
        findings[each.name] = _unless_stopped(each, patient, findings)
    lines = (_line(name, found) for name, found in findings.items() if found is not None)
    return Checkup(str(settings.home), tuple(lines))


def _unless_stopped(check: _Check, patient: Patient, findings: Mapping[str, Finding | None]) -> Finding | None:
    before = findings[check.needs] if check.needs else well("")
    if before is None or before.beyond == "hidden":
        return None
    return _found(check, patient) if before.beyond == "look" else untold(check.needs, before.mend)


def _line(name: str, found: Finding) -> Line:
    """Without what an address may carry: an error names the place that it was raised for."""
    return Line(name, found.tone, plain(_CREDENTIALS.sub(r"\1***@", found.sentence), _LONGEST), found.mend)


def _found(check: _Check, patient: Patient) -> Finding | None:
    try:
        return check.look(patient)
    except RecsysError as error:
        place = f" ({error.where})" if error.where else ""
        return ill(f"{error.what}{place}", error.mend)
    except Exception as error:  # whatever a broken home makes a library raise
        return ill(f"the check {check.name} failed: {type(error).__name__}: {error}", "")
