"""Places and engines: the home and its folders, threads, and the environment Prefect and MLflow need.

`export()` must run before Prefect or MLflow is imported, because they read the environment then. All they
write goes below the home, so that `$HOME` may be read-only.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from recsys.errors import ConfigError, HomeError
from tasks.adapters.address import Address
from tasks.adapters.disk import put_if_absent, sync, write
from tasks.adapters.sharing import CACHES, follow_era, join, known_era

HOME_FORMAT = 2
"""The layout of a home. It goes up when an earlier version would misread what this one writes: 2, a vault that is sealed."""

LOCAL = "local"
"""A Dask cluster of this machine, for as long as a step."""

_CLUSTER = re.compile(r"dask(?:\+(tls))?://((?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5})")
_LEAST_FREE = 64 << 20  # bytes
_EXPORTED = "RECSYS_EXPORTED"
_YOURS = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "HF_HOME", "PREFECT_LOGGING_LEVEL")
"""Variables that keep the value you gave them. What an earlier `export()` gave them is not yours."""


@dataclass(frozen=True)
class Settings:
    """Where things are and how much of the machine may be used. A field is read from RECSYS_<FIELD>."""

    home: Path
    store: Path
    vault_key: Path  # the file with the secret behind the user tokens
    threads: int  # of one training; part of the key of training and labelling (other threads, other bits)
    workers: int  # processes that the parts of a step are spread over
    shards: int  # a power of two, fixed for a home
    memory_mb: int  # for out-of-core joins and sorts
    shared: Address | None = None  # the bucket that `store` is the cache of
    ranks: int = 1  # processes that train one teacher, of all hosts together; part of its key, as threads are
    hosts: int = 1  # that the ranks are spread over evenly
    rendezvous: str = ""  # HOST:PORT where the launchers of several hosts meet
    cluster: str = ""  # of Dask, that parts are spread over: LOCAL, or its scheduler's address; empty: none

    @classmethod
    def from_environment(cls, home: Path | None = None) -> Self:
        """Settings from RECSYS_* variables; `home` wins over RECSYS_HOME, which wins over ~/.recsys."""
        home = Path(home or os.environ.get("RECSYS_HOME") or "~/.recsys").expanduser().absolute()
        shards = _count("SHARDS", 4)
        if shards & (shards - 1):
            raise ConfigError(f"the number of shards must be a power of two, not {shards}", where="RECSYS_SHARDS")
        place = os.environ.get("RECSYS_STORE") or str(home / "store")
        caches = home / "cache" / CACHES
        shared = known_era(caches, Address.from_environment(place)) if "://" in place else None
        ranks, hosts, rendezvous = _count("RANKS", 1), _count("HOSTS", 1), os.environ.get("RECSYS_RENDEZVOUS", "")
        if ranks % hosts or (hosts > 1 and ":" not in rendezvous):
            raise ConfigError(
                f"{ranks} ranks on {hosts} hosts that meet at {rendezvous!r} cannot be launched",
                where="RECSYS_RANKS, RECSYS_HOSTS, RECSYS_RENDEZVOUS",
                mend="Give a number of ranks that the hosts share evenly and, for several hosts, HOST:PORT of this one.",
            )
        memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 21  # half of the machine's
        return cls(
            home=home,
            store=caches / shared.folder if shared else Path(place).expanduser().absolute(),
            vault_key=Path(os.environ.get("RECSYS_VAULT_KEY") or home / "vault" / "key").expanduser().absolute(),
            threads=_count("THREADS", len(os.sched_getaffinity(0))),
            workers=_count("WORKERS", 1),
            shards=shards,
            memory_mb=_count("MEMORY_MB", max(512, memory_mb)),
            shared=shared,
            ranks=ranks,
            hosts=hosts,
            rendezvous=rendezvous,
            cluster=_cluster(os.environ.get("RECSYS_EXECUTOR", "").strip()),
        )

    @property
    def temp(self) -> Path:
        """For files that need not outlive a command."""
        return self.home / "tmp"

    @property
    def cache(self) -> Path:
        """For what can be had again: item vectors, downloaded models, fonts."""
        return self.home / "cache"

    @property
    def ledger(self) -> Path:
        """The mirror of the promotion ledger."""
        return self.home / "ledger"

    @property
    def vault(self) -> Path:
        """Which user is behind a token."""
        return self.home / "vault"

    @property
    def mlflow(self) -> Path:
        """MLflow's database and artifacts."""
        return self.home / "mlflow"

    @property
    def mlflow_database(self) -> str:
        """MLflow's own database of this home."""
        return f"sqlite:///{self.mlflow / 'mlflow.db'}"

    @property
    def tracking_uri(self) -> str:
        """Your MLFLOW_TRACKING_URI, else this home's running MLflow server, else its database."""
        return _yours("MLFLOW_TRACKING_URI") or self.running().get("mlflow", self.mlflow_database)

    @property
    def keeps_key(self) -> bool:
        """Whether the vault's key lies in the home. Who keeps it elsewhere wants it in no backup either: without it that names nobody."""
        return self.vault_key.is_relative_to(self.home)

    @property
    def artifacts(self) -> Path | None:
        """Where MLflow keeps artifacts; None where another home's server decides."""
        return None if _yours("MLFLOW_TRACKING_URI") else self.mlflow / "artifacts"

    @property
    def prefect(self) -> Path:
        """Prefect's home."""
        return self.home / "prefect"

    @property
    def orchestrator(self) -> str | None:
        """Your PREFECT_API_URL, else this home's running Prefect server; None where there is neither."""
        return _yours("PREFECT_API_URL") or self.running().get("prefect")

    @property
    def servers_file(self) -> Path:
        """Which servers of this home are running: {"mlflow": {"url", "pid"}, "prefect": {"url", "pid"}}."""
        return self.home / "run" / "servers.json"

    @property
    def logs(self) -> Path:
        """What servers, worker and supervisor write; each log is bounded."""
        return self.home / "logs"

    def prepare(self) -> Self:
        """Makes the folders, readable by their owner only.

        HomeError when one cannot be written, a later version of recsys made this home, or its shared store cannot be
        used.
        """
        self._require_known_format()
        folders = (self.home, self.cache, self.store, self.temp, self.ledger, self.vault, self.vault_key.parent)
        try:
            for folder in (*folders, self.mlflow / "artifacts", self.prefect, self.servers_file.parent, self.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(b"probe")
                    probe.flush()
        except OSError as error:
            raise HomeError(
                f"the home cannot be written: {error.strerror}",
                where=str(error.filename or folder),
                mend="Choose another folder with RECSYS_HOME, or mend its permissions.",
            ) from error
        free = shutil.disk_usage(self.home).free
        if free < _LEAST_FREE:
            raise HomeError(
                f"the disk is full: {free:,} bytes are free, at least {_LEAST_FREE:,} are needed",
                where=str(self.home),
                mend="Make room or choose another folder with RECSYS_HOME.",
            )
        self._raise_format()
        self._fix_shards()
        if self.shared:
            join(self.store, self.shared, self._door_sample)
            present = follow_era(self.store.parent, self.shared)
            if present != self.shared:
                return replace(self, shared=present, store=self.store.parent / present.folder).prepare()
        return self

    def export(self, passing: str | None = None) -> Self:
        """Sets the environment of this process and its children for Prefect, MLflow and what else caches.

        `passing` is a Prefect server that lives as long as this process.
        """
        environment = self._environment()
        if passing:
            environment["PREFECT_API_URL"] = passing
        for name in _YOURS:
            if _yours(name):
                environment.pop(name, None)
            elif name not in environment:
                os.environ.pop(name, None)
        os.environ.update(environment)
        os.environ[_EXPORTED] = json.dumps({name: environment[name] for name in _YOURS if name in environment})
        tempfile.tempdir = str(self.temp)
        return self

    def child_environment(self) -> Mapping[str, str]:
        """For a child that loads a published model: this environment, with pickle off whatever was set here."""
        ours = {name: value for name, value in self._environment().items() if name.startswith("MLFLOW_")}
        return {**os.environ, **ours, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def running(self) -> Mapping[str, str]:
        """URL by name ("mlflow", "prefect") of the servers of this home that are alive and answer."""
        try:
            servers = json.loads(self.servers_file.read_bytes())
            return {n: s["url"] for n, s in servers.items() if _answers(n, s["url"], int(s["pid"]))}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HomeError(
                "the file of running servers is damaged",
                where=str(self.servers_file),
                mend="Delete it and start the servers again.",
            ) from error

    def _environment(self) -> dict[str, str]:
        binaries = str(Path(sys.executable).parent)
        path = os.environ.get("PATH", os.defpath).split(os.pathsep)
        environment = {
            "RECSYS_HOME": str(self.home),
            "RECSYS_STORE": self.shared.text if self.shared else str(self.store),
            "RECSYS_VAULT_KEY": str(self.vault_key),
            "PREFECT_HOME": str(self.prefect),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self.prefect / 'prefect.db'}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 are too few when busy
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the smallest there is; flows/automations.py counts on it
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the terminal shows steps, not log lines
            "DO_NOT_TRACK": "1",
            "GX_ANALYTICS_ENABLED": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "ORT_DISABLE_TELEMETRY": "1",
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # the default lets a doctored model run code
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            # half a minute, in which a server is started again; the defaults hang for four minutes on a dead one
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
            "TMPDIR": str(self.temp),
            "XDG_CACHE_HOME": str(self.cache),
            "MPLCONFIGDIR": str(self.cache / "matplotlib"),
            "HF_HOME": str(self.cache / "huggingface"),
            # `mlflow models serve` finds uvicorn on PATH, and without it ends with 127 and no word
            "PATH": os.pathsep.join([binaries, *(p for p in path if p != binaries)]),
        }
        if prefect := self.running().get("prefect"):
            environment["PREFECT_API_URL"] = prefect
        return environment

    def _require_known_format(self) -> None:
        """A home says which layout it has (one without a word is of the first); one of a later version is not touched."""
        path = self.home / "format"
        found = path.read_text().strip() if path.is_file() else "1"
        if not found.isdecimal() or int(found) > HOME_FORMAT:
            raise HomeError(
                f"this home has format {found!r}, and this version knows formats up to {HOME_FORMAT}",
                where=str(path),
                mend="Install the version of recsys that made it, or a later one.",
            )

    def _raise_format(self) -> None:
        """From now on an earlier version leaves this home alone: it would take all users for damaged."""
        if self._fixed("format", str(HOME_FORMAT)) != str(HOME_FORMAT):
            with tempfile.TemporaryDirectory(dir=self.temp) as folder:
                draft = Path(folder, "format")
                write(draft, str(HOME_FORMAT).encode())
                draft.replace(self.home / "format")
            sync(self.home)

    def _fixed(self, name: str, text: str) -> str:
        """What the first `prepare` of a home wrote in a file for ever: `text` now, or what is there."""
        path = self.home / name
        with tempfile.NamedTemporaryFile(dir=self.temp) as draft:
            draft.write(text.encode())
            draft.flush()
            put_if_absent(Path(draft.name), path)
        return path.read_text()

    def _door_sample(self) -> str:
        """A token by which homes of one shared store see that they have one key."""
        from tasks.adapters.vault import Vault  # brings pyarrow; asked once a home

        return Vault(self.vault, self.vault_key).store_door

    def _fix_shards(self) -> None:
        """The first `prepare` of a home decides its number of shards."""
        fixed = self._fixed("shards", str(self.shards))
        if fixed != str(self.shards):
            raise ConfigError(
                f"this home has {fixed} shards, not {self.shards}",
                where="RECSYS_SHARDS",
                mend=f"Set it to {fixed}, or start another home: shards cannot be changed.",
            )


def limit_threads(threads: int) -> None:
    """Holds this process to so many threads; call it before torch, numpy or DuckDB is imported."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RECSYS_THREADS"):
        os.environ[variable] = str(threads)


def shop_variables() -> Mapping[str, str]:
    """What RECSYS_EVENTS, RECSYS_ITEMS, RECSYS_COLUMNS and RECSYS_TIMEZONE say of the shop; only those that are set."""
    names = ("events", "items", "columns", "timezone")
    return {name: os.environ[f"RECSYS_{name.upper()}"] for name in names if os.environ.get(f"RECSYS_{name.upper()}")}


def _count(name: str, default: int) -> int:
    variable = f"RECSYS_{name}"
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"a whole number from 1 is needed, not {text!r}", where=variable)
    return int(text)


def _cluster(text: str) -> str:
    """The address in Dask's own words of "dask://HOST:PORT" or "dask+tls://HOST:PORT"; LOCAL of "dask://local"."""
    if not text or text == f"dask://{LOCAL}":
        return text and LOCAL
    match = _CLUSTER.fullmatch(text)
    if match is None:
        mend = "Write dask://HOST:PORT or dask://local, or leave it out."
        raise ConfigError(f"{text!r} is no executor", where="RECSYS_EXECUTOR", mend=mend)
    return f"{match[1] or 'tcp'}://{match[2]}"


def _yours(name: str) -> str | None:
    """The value of a variable unless an earlier `export()` set it."""
    value = os.environ.get(name)
    return None if value == json.loads(os.environ.get(_EXPORTED, "{}")).get(name) else value


def _answers(name: str, url: str, pid: int) -> bool:
    """Whether a server's process lives and its health page answers. A busy one gets five seconds."""
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    return False
