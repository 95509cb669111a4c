"""The model registry: data-only versions, each registered once, their aliases, their load test.

A version holds the published files and MLflow's `MLmodel`, never code and never pickle; what loads them is a
module of the installed package. MLflow repeats a request whose response was lost, so every version carries the
tag recsys.intent: of several with the same intent the lowest number counts.
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recsys.config import LimitsConfig
from recsys.errors import RegistryError
from tasks.adapters.connection import Client, RefusedError
from tasks.adapters.disk import told
from tasks.adapters.manifest import digest_of_folder
from tasks.adapters.packaging import Example, save
from tasks.adapters.settings import Settings

__all__ = [
    "DECISION",
    "DIGEST",
    "DUPLICATE",
    "ERA",
    "FAILED",
    "INTENT",
    "LATENCY",
    "LONGEST_TEXT",
    "SENTENCE",
    "STUDENT",
    "TEACHER",
    "UNFORGOTTEN",
    "UNPROVEN",
    "VERDICT",
    "Example",
    "Registry",
    "Version",
]

TEACHER = "recsys-teacher"
STUDENT = "recsys-student"
INTENT = "recsys.intent"
DIGEST = "recsys.digest"
DUPLICATE = "recsys.duplicate_of"
DECISION = "recsys.decision"
SENTENCE = "recsys.sentence"
"""Tag of a version: the verdict in one sentence. Its description is the model card."""
FAILED, UNPROVEN = "recsys.failed", "recsys.unproven"
"""Tags of a version: names of the gate's criteria; absent where there are none."""
VERDICT = "recsys.verdict"
UNFORGOTTEN = "recsys.before_forgetting"
"""Tag of a version: the day on which users were forgotten that it had learnt from."""
ERA = "recsys.era"
"""Tag of a version: the era of the shared store that it was made in; none in a store of one home."""
LATENCY = "recsys.latency_ms"
"""Tag of a version: the latency budget that its verdict was given under, in ms."""

LONGEST_TEXT = 5000
"""Characters that MLflow's tables have room for in a description: sqlite takes more, PostgreSQL refuses it."""

_CUT = "\n\n(The rest is cut off: MLflow keeps no longer text.)"

_SHOWN = "mlflow.modelVersions"
"""Tag of a logged model from which MLflow's UI shows what it was registered as; only MLflow's server sets it."""

_NAME = re.compile(r"[a-z0-9_-]{1,64}\Z")
_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?\Z")
_ATTEMPTS = 5


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model: str
    number: int
    tags: Mapping[str, str]
    description: str  # the model card; before there were cards, the verdict in one sentence
    run_id: str

    @property
    def digest(self) -> str:
        """Of the published files, as the store computes it; empty for a version registered by hand."""
        return self.tags.get(DIGEST, "")

    @property
    def remembers(self) -> str:
        """Why it may not serve again, as a clause: users were forgotten since that it had learnt from. Empty when it may."""
        since = self.tags.get(UNFORGOTTEN)
        return f"has learnt from users who were forgotten on {since}" if since else ""

    @property
    def sentence(self) -> str:
        """The verdict in one sentence; of a version without a card its description."""
        return self.tags.get(SENTENCE) or self.description.strip().partition("\n")[0]

    @property
    def latency_ms(self) -> float:
        """The latency budget of its verdict; the default one where none was recorded."""
        text = self.tags.get(LATENCY, "")
        return float(text) if _NUMBER.match(text) else LimitsConfig().latency_ms


class Registry:
    """The registered models of one MLflow."""

    def __init__(self, settings: Settings, client: Client, experiment_id: Callable[[], str]) -> None:
        self.settings, self.client = settings, client
        self._experiment_id = experiment_id

    def register(
        self,
        model: str,
        folder: Path,
        loader_module: str,
        *,
        run_id: str,
        intent: str,
        tags: Mapping[str, str],
        description: str,
        example: Example | None = None,
    ) -> int:
        """Publishes the files of `folder` as a version and gives its number, the same for the same intent.

        `loader_module` is an installed module with `_load_pyfunc(path)`; its name stays in the registry.
        """
        known = self.by_intent(model, intent)
        if known is None:
            self.require(model)
            tags = {**tags, INTENT: intent, DIGEST: digest_of_folder(folder)}
            if self.settings.shared:
                tags[ERA] = str(self.settings.shared.era)
            logged = self._publish(model, folder, loader_module, run_id, example)
            # Not models:/<id>: on sqlite MLflow would look that up in its global tracking URI, not in ours.
            place = logged.artifact_location
            self.create(model, place, tags, description, run_id=run_id, model_id=logged.model_id)
            known = self.by_intent(model, intent)
            assert known is not None  # it was created a line above
            shown = json.dumps([{"name": model, "version": str(known.number)}])
            self.client.set_logged_model_tags(logged.model_id, {_SHOWN: shown})
        return known.number

    def create(self, model: str, source: str, tags: Mapping[str, str], description: str, **links: str) -> None:
        """Creates a version; tags[INTENT] tells whether it was, whatever became of the response."""
        description = _fitting(description)
        for attempt in range(_ATTEMPTS):
            try:
                self.client.create_model_version(model, source, tags=dict(tags), description=description, **links)
            except RefusedError:  # two writers took the same number, or the response was lost
                if self.by_intent(model, tags[INTENT]) is None and attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * attempt)
            if self.by_intent(model, tags[INTENT]) is not None:
                return

    def require(self, model: str) -> None:
        """The registered model is there afterwards."""
        if not _NAME.match(model):
            raise RegistryError(f"{model!r} is no name of a model", mend="Use at most 64 of a-z, 0-9, _ and -.")
        if not self._exists(model):
            with contextlib.suppress(RefusedError):  # another process was faster
                self.client.create_registered_model(model)

    # -- reading

    def all_versions(self, model: str) -> list[Version]:
        """Every version, lowest first."""
        return self._search(f"name = '{model}'")

    def versions(self, model: str) -> list[Version]:
        """Every version, lowest first, duplicates of an intent left out."""
        first: dict[str, Version] = {}
        for version in self.all_versions(model):
            first.setdefault(version.tags.get(INTENT, f"version {version.number}"), version)
        return list(first.values())

    def version(self, model: str, number: int) -> Version:
        """One version; RegistryError that lists the others when there is no such."""
        versions = self.versions(model)
        for version in versions:
            if version.number == number:
                return version
        listed = ", ".join(str(v.number) for v in versions) or "none"
        raise RegistryError(f"{model} has no version {number}", where=self.client.uri, mend=f"There are: {listed}.")

    def by_intent(self, model: str, intent: str) -> Version | None:
        """The version registered with an intent; its twins, from lost responses, are marked as duplicates."""
        found = self._search(f"name = '{model}' and tags.`{INTENT}` = '{intent}'")
        for twin in found[1:]:
            if DUPLICATE not in twin.tags:
                self.set_tags(model, twin.number, {DUPLICATE: str(found[0].number)})
        return found[0] if found else None

    def aliases(self, model: str) -> Mapping[str, int]:
        """Version by alias; empty when there is no such model."""
        try:
            found = self.client.get_registered_model(model).aliases
        except RefusedError as error:
            if error.code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: int(number) for alias, number in found.items()}

    def alias(self, model: str, alias: str) -> Version | None:
        """The version an alias points at."""
        number = self.aliases(model).get(alias)
        return None if number is None else self.version(model, number)

    def download(self, model: str, number: int, into: Path) -> Path:
        """The published files of a version, in a folder below `into`. What they are is for the caller to check."""
        package = self._package(model, number, into)
        folders = [path for path in (package / "data").glob("*") if path.is_dir()]
        if len(folders) != 1:
            raise RegistryError(
                f"{model} version {number} holds {len(folders)} folders of files, not one", where=str(package)
            )
        return folders[0]

    # -- changing

    def set_alias(self, model: str, alias: str, number: int | None) -> None:
        """Points an alias at a version; None takes it away."""
        if number is None:
            _set(lambda: self.client.delete_registered_model_alias(model, alias))
        else:
            _set(lambda: self.client.set_registered_model_alias(model, alias, str(number)))

    def set_tags(self, model: str, number: int, tags: Mapping[str, str]) -> None:
        """Tags of a version."""
        for name, value in tags.items():
            _set(partial(self.client.set_model_version_tag, model, str(number), name, value))

    def drop_tag(self, model: str, number: int, name: str) -> None:
        """A tag of a version is gone. Done twice it is done."""
        with contextlib.suppress(RefusedError):
            self.client.delete_model_version_tag(model, str(number), name)

    def erase(self, model: str, number: int) -> None:
        """The files of a version are gone for good; what is said of it stays. Done twice it is done."""
        self.client.erase(self.client.get_model_version_download_uri(model, str(number)))

    def load_check(self, model: str, number: int, runtime: str = "recsys.runtime") -> None:
        """Loads a version as a stranger would: downloaded anew, in a clean process, pickle off, its digest first.

        The process compares the digest of the downloaded files with the version's, has `runtime` verify them and
        answer the golden requests, and holds it to the latency budget of its verdict (tasks/adapters/load_check.py
        states the rule). RegistryError, with what it said, when any of this fails.
        """
        version = self.version(model, number)
        if not version.digest:
            raise RegistryError(
                f"{model} version {number} was not registered by a night: its files have no digest to compare with",
                where=self.client.uri,
            )
        # told to stop, this thread goes before MLflow's, which bring the files: they may put some where it clears away
        folder = tempfile.TemporaryDirectory(dir=self.settings.temp, prefix="load-check-", ignore_cleanup_errors=True)
        with folder as temporary:
            package = self._package(model, number, Path(temporary))
            command = [sys.executable, "-m", "tasks.adapters.load_check", str(package), version.digest, runtime]
            done = subprocess.run(
                [*command, str(version.latency_ms)],
                env=self.settings.child_environment(),
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or [f"it ended with return code {done.returncode}"]
            raise RegistryError(
                f"{model} version {number} fails the load test: {said[-1]}",
                where=self.client.uri,
                mend="It was not given an alias. Choose another version.",
            )

    def check_adoptable(self, number: int) -> None:
        """The load test of a version of STUDENT that a hand made champion. RegistryError also when it may serve no more."""
        version = self.version(STUDENT, number)
        if version.remembers:
            raise RegistryError(f"version {number} {version.remembers}")
        self.load_check(STUDENT, number)

    # -- inside

    def _package(self, model: str, number: int, into: Path) -> Path:
        """A version as MLflow gives it out, whoever keeps the files: `MLmodel` and the folder data.

        By its address: models:/<name>/<number> MLflow would look up in its global tracking URI, not in ours.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        uri = self.client.uri
        place = self.client.get_model_version_download_uri(model, str(number))
        try:
            return Path(download_artifacts(place, dst_path=str(into), tracking_uri=uri, registry_uri=uri))
        except (MlflowException, OSError) as error:
            raise RegistryError(
                f"the files of {model} version {number} cannot be had: {error}",
                where=place,
                mend="Choose another version.",
            ) from error

    def _publish(self, model: str, folder: Path, loader: str, run_id: str, example: Example | None) -> Any:
        """Uploads the files as a logged model of a run, MLflow's entity, and gives it."""
        with tempfile.TemporaryDirectory(dir=self.settings.temp) as temporary:
            package = Path(temporary) / "model"
            with told(self.settings.temp):
                save(package, folder, loader, example)
            logged = self._logged_model(model, run_id)
            self.client.log_model_artifacts(logged.model_id, str(package))
        self.client.finalize_logged_model(logged.model_id, "READY")
        self._log_output(run_id, logged.model_id)
        return logged

    def _logged_model(self, model: str, run_id: str) -> Any:
        """A new one. A lost response makes MLflow create two; the one that is not ours is deleted."""
        experiment, intent = self._experiment_id(), uuid.uuid4().hex
        logged = self.client.create_logged_model(experiment, name=model, source_run_id=run_id, tags={INTENT: intent})
        for twin in self.client.search_logged_models([experiment], f"tags.`{INTENT}` = '{intent}'"):
            if twin.model_id != logged.model_id:
                self.client.delete_logged_model(twin.model_id)
        return logged

    def _log_output(self, run_id: str, model_id: str) -> None:
        """That a run made a model. MLflow refuses to be told twice, as it is when the response was lost."""
        from mlflow.entities import LoggedModelOutput

        try:
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
        except RefusedError:
            outputs = self.client.get_run(run_id).outputs
            if model_id not in {output.model_id for output in outputs.model_outputs}:
                raise

    def _exists(self, model: str) -> bool:
        return bool(self.client.search_registered_models(f"name = '{model}'", max_results=1))

    def _search(self, condition: str) -> list[Version]:
        found: list[Version] = []
        token = None
        while True:
            page = self.client.search_model_versions(condition, max_results=1000, page_token=token)
            found += [Version(v.name, int(v.version), dict(v.tags), v.description or "", v.run_id or "") for v in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda v: v.number)


def _set(change: Callable[[], object]) -> None:
    """Two writers of a new alias or tag at once violate a constraint of MLflow's database; then it is there, and is set."""
    for attempt in range(_ATTEMPTS):
        try:
            change()
            return
        except RefusedError:
            if attempt == _ATTEMPTS - 1:
                raise


def _fitting(text: str) -> str:
    """A text that MLflow has room for, cut at the end of a line where it is too long, and saying so."""
    if len(text) <= LONGEST_TEXT:
        return text
    head = text[: LONGEST_TEXT - len(_CUT)]
    return (head.rpartition("\n")[0] or head) + _CUT
