"""Checkup of the two databases: there, sound, reachable, and migrated to what the installed package expects."""

from pathlib import Path

from tasks.adapters.database import Database, newest_migration
from tasks.finding import Finding, ill, not_yet, well
from tasks.patient import Patient

_MIGRATIONS = {"mlflow": "store/db_migrations/versions", "prefect": "server/database/_migrations/versions/sqlite"}


def mlflow(patient: Patient) -> Finding:
    """MLflow's: with it go champion and ledger."""
    settings = patient.settings
    if settings.artifacts is None:
        patient.tracking.client.search_experiments(max_results=1)  # told when it does not answer
        return well(f"your own MLflow answers at {settings.tracking_uri}")
    path = settings.mlflow / "mlflow.db"
    upgrade = f"recsys down; mlflow db upgrade {settings.mlflow_database}"
    return _examined(patient, "mlflow", path, upgrade, "with it went the champion; recsys restore")


def prefect(patient: Patient) -> Finding:
    """Prefect's: with it go the schedules."""
    if patient.prefect_is_yours:
        return well(f"your own Prefect keeps it, at {patient.settings.orchestrator}")
    path = patient.settings.prefect / "prefect.db"
    upgrade = "recsys down; recsys up"  # its server migrates when it starts
    return _examined(patient, "prefect", path, upgrade, "with it went the schedules; recsys up")


def _examined(patient: Patient, name: str, path: Path, upgrade: str, lost: str) -> Finding:
    if not path.exists():
        if patient.last_night is None and name not in patient.servers:
            return not_yet("it is not there yet: no night has ended in this home", "recsys nightly")
        what, _, mend = lost.partition("; ")
        return ill(f"{path} is gone, {what}", mend)
    database = Database(path)
    if faults := database.faults():
        return ill(f"{path} is damaged: {faults}", "recsys down; recsys restore")
    found, expected = database.revision(), newest_migration(name, _MIGRATIONS[name])
    if found != expected:
        return ill(f"its migration is {found or 'none'}, the installed {name} expects {expected}", upgrade)
    where = f"the server at {patient.servers[name]} answers" if name in patient.servers else "no server runs over it"
    return well(f"sound and migrated; {where}")
