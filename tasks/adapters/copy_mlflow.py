"""MLflow's data of a home copied to an MLflow server with a database of its own, under the very same numbers and names.

Row by row, table by table: MLflow itself only hands out new run ids and version numbers, and the ledger is made of the
numbers. Files go through the server, wherever it keeps them. All rows come in one transaction, after the files they name.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recsys.errors import ConfigError, RegistryError
from tasks.adapters.relocate import PLACES
from tasks.adapters.settings import Settings
from tasks.adapters.tracking import EXPERIMENT

DATABASE = "MLFLOW_BACKEND_STORE_URI"
"""MLflow's own variable for what its server keeps all but files in."""

_OF_THE_SERVER = frozenset({"alembic_version", "job_locks", "jobs", "scheduler_leases"})
_ROWS = 1000  # of one statement


def copy_mlflow(settings: Settings, database: str, server: str) -> int:
    """Copies all that the home's own MLflow has to the `server` over `database` (SQLAlchemy's URL), and gives the rows.

    0 when it is all there. ConfigError when the database cannot be opened; RegistryError when it is of another version
    or has something else already.
    """
    with _opened(settings.mlflow_database, database) as (source, target):
        _require_same_version(source, target)
        if _runs(source) <= _runs(target):
            return 0
        _require_new(target)
        root = _place_of_artifacts(source, target)
        _send(settings.mlflow / "artifacts", root, server)
        old = (settings.mlflow / "artifacts").as_uri(), str(settings.mlflow / "artifacts")
        return sum(_copy(table, source, target, old, root) for table in _tables(source))


# --- rows ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(source: str, target: str) -> Iterator[tuple[Any, Any]]:
    """A connection to each; what was written to the target stays when the block ends well."""
    import sqlalchemy as sql

    where = DATABASE
    try:
        engines = sql.create_engine(source), sql.create_engine(target)
        where = str(engines[1].url)  # SQLAlchemy writes *** for a password
        with engines[0].connect() as reading, engines[1].begin() as writing:
            yield reading, writing
    except (sql.exc.SQLAlchemyError, ModuleNotFoundError) as error:
        said = str(error).partition("\n")[0]
        mend = f"Check {DATABASE}; PostgreSQL needs pip install 'recsys-factory[servers]'."
        raise ConfigError(f"MLflow's data cannot be copied: {said}", where=where, mend=mend) from error


def _tables(connection: Any) -> list[Any]:
    """All tables of MLflow as it defines them, those that others refer to first."""
    import mlflow.store.model_registry.dbmodels.models
    import mlflow.store.tracking.dbmodels.models
    import mlflow.store.workspace.dbmodels.models  # noqa: F401 - each adds its tables
    import sqlalchemy as sql
    from mlflow.store.db.base_sql_model import Base

    there = set(sql.inspect(connection).get_table_names()) - _OF_THE_SERVER
    tables = [table for table in Base.metadata.sorted_tables if table.name in there]
    if left := there - {table.name for table in tables}:
        raise RegistryError(f"MLflow's database has tables that MLflow does not define: {', '.join(sorted(left))}")
    return tables


def _copy(table: Any, source: Any, target: Any, old: tuple[str, str], new: str) -> int:
    """The rows that the target has not; a new one has MLflow's default experiment and workspace."""
    import sqlalchemy as sql

    keys = list(table.primary_key.columns)
    there = {tuple(row) for row in target.execute(sql.select(*keys))}
    columns = [column for name, column in PLACES if name == table.name]
    rows = [
        {**row, **{column: _moved(row[column], old, new) for column in columns}}
        for row in map(dict, source.execute(sql.select(table)).mappings())
        if tuple(row[key.name] for key in keys) not in there
    ]
    for first in range(0, len(rows), _ROWS):
        target.execute(table.insert(), rows[first : first + _ROWS])
    counted = table.autoincrement_column
    if rows and counted is not None and target.dialect.name == "postgresql":
        newest = sql.select(sql.func.max(counted)).scalar_subquery()
        target.execute(sql.select(sql.func.setval(sql.func.pg_get_serial_sequence(table.name, counted.name), newest)))
    return len(rows)


def _moved(place: str | None, old: tuple[str, str], new: str) -> str | None:
    for before in old:
        if place is not None and (place == before or place.startswith(f"{before}/")):
            return new + place[len(before) :]
    return place


def _runs(connection: Any) -> set[str]:
    import sqlalchemy as sql

    return {run for (run,) in connection.execute(sql.text("SELECT run_uuid FROM runs"))}


def _require_same_version(source: Any, target: Any) -> None:
    import sqlalchemy as sql

    if not sql.inspect(target).has_table("alembic_version"):
        what = "this is no database of MLflow"
        raise RegistryError(what, where=DATABASE, mend="Start the MLflow server over it once.")
    versions = [
        connection.scalar(sql.text("SELECT version_num FROM alembic_version")) for connection in (source, target)
    ]
    if versions[0] != versions[1]:
        raise RegistryError(
            f"the home's MLflow has database version {versions[0]}, the server's {versions[1]}",
            where=DATABASE,
            mend="Install the same MLflow for both; mlflow db upgrade brings the older database to it.",
        )


def _require_new(target: Any) -> None:
    import sqlalchemy as sql

    for table, condition in (("runs", ""), ("registered_models", ""), ("experiments", " WHERE experiment_id <> 0")):
        if count := target.scalar(sql.text(f"SELECT count(*) FROM {table}{condition}")):
            raise RegistryError(
                f"the server's MLflow is not new: it has {count} {table.replace('_', ' ')}",
                where=DATABASE,
                mend="Give it an empty database and start it over that once.",
            )


# --- files --------------------------------------------------------------------------------------------------------


def _place_of_artifacts(source: Any, target: Any) -> str:
    """Where the server would have put the artifacts of the home's experiment: beside those of its default one."""
    import sqlalchemy as sql

    default = target.scalar(sql.text("SELECT artifact_location FROM experiments WHERE experiment_id = 0"))
    ours = source.scalar(sql.text("SELECT experiment_id FROM experiments WHERE name = :name"), {"name": EXPERIMENT})
    if default is None or not default.endswith("/0") or ours is None:
        what = "the server's default experiment, beside which the home's is put, is not where MLflow puts it"
        raise RegistryError(what, where=DATABASE, mend="Give the server an empty database.")
    return f"{default.removesuffix('/0')}/{ours}"


def _send(folder: Path, place: str, server: str) -> None:
    """Every file below `folder`, whoever keeps what lies at `place`. Sent again it is the same."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        get_artifact_repository(place, tracking_uri=server, registry_uri=server).log_artifacts(str(folder))
    except (MlflowException, OSError) as error:
        raise RegistryError(f"MLflow does not take the home's files: {error}", where=place) from error
