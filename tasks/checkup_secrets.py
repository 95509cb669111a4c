"""Checkup for secrets where everybody reads: parameters of runs and deployments, tags and texts in MLflow."""

from collections.abc import Iterable
from pathlib import Path

from tasks.adapters.database import Database
from tasks.adapters.records import Written, written
from tasks.adapters.registry import STUDENT, TEACHER
from tasks.adapters.secret_values import exposed, known_secrets
from tasks.finding import Finding, doubtful, ill, several, well
from tasks.patient import Patient

_RUNS = 300  # newest that are looked at
_MEND = "change that secret, then delete what shows it; give secrets by the environment only"
_IN_PREFECT = {
    "parameters of run": f"SELECT name, parameters FROM flow_run ORDER BY created DESC LIMIT {_RUNS}",
    "job variables of run": f"SELECT name, job_variables FROM flow_run ORDER BY created DESC LIMIT {_RUNS}",
    "parameters of deployment": "SELECT name, parameters FROM deployment",
    "job variables of deployment": "SELECT name, infra_overrides FROM deployment",
    "pull steps of deployment": "SELECT name, pull_steps FROM deployment",
    "parameters of schedule": "SELECT slug, parameters FROM deployment_schedule",
    "template of work pool": "SELECT name, base_job_template FROM work_pool",
    "variable": "SELECT name, value FROM variable",
}
"""Read from the file: it is the same with and without a server, and takes no seconds to ask."""


def in_prefect(patient: Patient) -> Finding | None:
    """Parameters of runs, deployments and schedules, job variables, and Prefect's variables."""
    path: Path = patient.settings.prefect / "prefect.db"
    if patient.prefect_is_yours:
        return None  # its database is not ours to read
    if not path.exists():
        return doubtful("Prefect's database is not there", "recsys nightly")
    database = Database(path)
    texts = [
        Written(f"{kind} {name}", str(text))
        for kind, query in _IN_PREFECT.items()
        for name, text in database.rows(query)
        if text
    ]
    return _searched(patient, texts)


def in_mlflow(patient: Patient) -> Finding:
    """Parameters and tags of runs, tags and descriptions of versions."""
    return _searched(patient, written(patient.tracking, patient.registry, (STUDENT, TEACHER), _RUNS))


def _searched(patient: Patient, texts: Iterable[Written]) -> Finding:
    secrets = known_secrets(patient.settings)
    looked, given_away = 0, []
    for each in texts:
        looked += 1
        if what := exposed(each.text, secrets):
            given_away.append(f"{what} stands in {each.where}")
    return ill(several(given_away), _MEND) if given_away else well(f"none in {looked:,} texts")
