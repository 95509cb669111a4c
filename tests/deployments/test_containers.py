"""Images and compose.yaml: every file, command, option, variable and port they name is there, and nothing runs unbounded.

No engine runs here: what only an engine could tell is said in docs/deploying.md.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from tasks.adapters.settings import Settings, shop_variables

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
COMPOSE = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
NGINX = (DEPLOYMENTS / "nginx" / "nginx.conf").read_text()
DOCKERFILES = sorted(DEPLOYMENTS.glob("Dockerfile.*"))
PINNED = re.compile(r"[\w./-]+:(?!latest)[\w.-]*\d[\w.-]*\Z")
SECRET = re.compile(r"(?i)(password|secret|access_key|_key|htpasswd)")


@dataclass
class Stage:
    """What one stage of a Dockerfile ends with."""

    base: str
    environment: dict[str, str] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)  # the arguments of each instruction

    @property
    def command(self) -> list[str]:
        return json.loads(self.words["CMD"][-1])


def stages(path: Path) -> dict[str, Stage]:
    """By name; one that follows another begins with what that one has. The last has the name ''."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", path.read_text()))
    arguments = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)", text))
    found: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, words = line.split(None, 1)
        if instruction == "FROM":
            base, _, name = words.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], base)
            before = found.get(base)
            current = Stage(base, dict(before.environment), dict(before.words)) if before else Stage(base)
            found[name or ""] = current
        elif found:
            current.words[instruction] = [*current.words.get(instruction, []), words]
            if instruction == "ENV":
                current.environment |= dict(word.split("=", 1) for word in shlex.split(words))
    return found


def image_of(service: dict) -> Stage | None:
    """The stage that is built for a service; None for an image that others publish."""
    if "build" not in service:
        return None
    built = stages(DEPLOYMENTS / Path(service["build"]["dockerfile"]).name)
    return built[service["build"].get("target", "")]


def command_of(service: dict) -> list[str]:
    image = image_of(service)
    return service.get("entrypoint") or service.get("command") or (image.command if image else [])


def final(path: Path) -> list[Stage]:
    """The stages that are images of their own: those nothing else is made of."""
    built = stages(path)
    used = {stage.base for stage in built.values()}
    copied = set(re.findall(r"--from=(\w+)", path.read_text()))
    return [stage for name, stage in built.items() if name not in used | copied]


# -- images


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_ours_alone_and_looked_after(path):
    built = stages(path)
    assert len(built) > 1, "what builds is not what runs"
    for stage in built.values():
        assert stage.base in built or PINNED.match(stage.base), stage.base
    for stage in final(path):
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", stage.words["USER"][-1]), (
            "a number, so that a cluster can tell it is not root"
        )
        assert stage.words["HEALTHCHECK"]
        assert stage.words["EXPOSE"]
        labels = " ".join(stage.words["LABEL"])
        assert f'image.version="{project()["version"]}"' in labels
        assert "image.title=" in labels
        assert stage.command


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_not_ignored(path):
    for words in (word for stage in stages(path).values() for word in stage.words.get("COPY", [])):
        *sources, _ = [word for word in words.split() if not word.startswith("--")]
        for source in [] if "--from=" in words else sources:
            assert (ROOT / source).exists(), source
            assert any(sent(str(file.relative_to(ROOT))) for file in [ROOT / source, *(ROOT / source).rglob("*")]), (
                source
            )


def sent(name: str) -> bool:
    """Whether .dockerignore lets a file through: its last line that matches decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!")
        if (
            line
            and not line.startswith("#")
            and (name == pattern or name.startswith(f"{pattern}/") or fnmatch(name, pattern))
        ):
            kept = line.startswith("!")
    return kept


@pytest.mark.parametrize(
    "name", [".git/config", ".env", "deployments/.env", "deployments/secrets/tls.key", ".venv/bin/python"]
)
def test_no_image_can_hold_what_is_private(name):
    assert not sent(name)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_packages_are_those_of_a_lock_and_nothing_is_fetched_beside_it(path):
    installing = [
        word
        for stage in stages(path).values()
        for word in stage.words.get("RUN", [])
        if "install.sh" in word or ("pip" in word and " install " in word)
    ]
    assert bool(installing) == (path.name != "Dockerfile.store")
    for words in installing:
        lock = re.match(r"sh deployments/install.sh (\w+) ", words)
        assert lock or " install --no-deps --no-build-isolation . " in words, words
        assert not lock or (DEPLOYMENTS / "locks" / f"{lock[1]}.txt").is_file()


def test_the_extra_for_serving_brings_no_training():
    """The lock has no tree, but what is asked for is short enough to be read."""
    asked = {
        re.match(r"[\w-]+", each)[0]
        for each in [*project()["dependencies"], *project()["optional-dependencies"]["serve"]]
    }
    assert not asked & {
        "torch",
        "transformers",
        "prefect",
        "mlflow",
        "pandas",
        "optuna",
        "duckdb",
        "great-expectations",
    }


# What the serving image does not have is made absent; what `recsys serve` imports must come up all the same.
_WITHOUT = """
import importlib.util, sys
ABSENT = {"torch", "transformers", "prefect", "pandas", "optuna", "duckdb", "scipy", "sklearn", "onnx", "great_expectations",
          "matplotlib", "jinja2", "sqlalchemy", "alembic", "flask"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not in the serving image", name=name)
sys.meta_path.insert(0, Absent())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in ABSENT else found(name, package)
import flows.cli.app, uvicorn, recsys.web, tasks.adapters.load_check, yaml
from tasks.adapters.connection import Client
from tasks.adapters.settings import Settings
Settings.from_environment().prepare().export()
import mlflow.artifacts
from mlflow.store.artifact import mlflow_artifacts_repo
Client("http://127.0.0.1:9")
print("it serves")
"""


def test_serving_imports_nothing_that_its_image_lacks(tmp_path):
    environment = {**os.environ, "RECSYS_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout == "it serves\n", done.stderr


# -- compose


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_bounded_watched_and_can_do_little(name):
    service = SERVICES[name]
    image = image_of(service)
    assert service["restart"] == "unless-stopped"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert PINNED.match(service["image"])
    assert "healthcheck" in service or image.words["HEALTHCHECK"]
    user = service.get("user") or image.words["USER"][-1]
    assert user.split(":")[0] not in ("0", "root")
    if image:
        assert service["build"]["context"] == ".."
        assert service["image"].endswith(f":{project()['version']}")


def test_only_the_gate_is_reached_from_outside():
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["nginx"]
    assert not any("network_mode" in service for service in SERVICES.values())
    assert SERVICES["postgres"]["networks"] == SERVICES["store"]["networks"] == ["data"]
    assert COMPOSE["networks"]["data"] == {"internal": True}
    assert "data" not in SERVICES["nginx"]["networks"]


def test_whatever_is_named_is_there():
    volumes, networks = set(COMPOSE["volumes"]), set(COMPOSE["networks"])
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= networks
        assert set(service.get("depends_on", {})) <= SERVICES.keys()
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            assert source in volumes or source == "./shop" or (DEPLOYMENTS / source).is_file(), (name, source)
        for secret in service.get("secrets", []):
            assert secret["source"] in COMPOSE["secrets"]
            assert secret["target"] in NGINX


def test_variables_are_those_of_the_example_which_holds_no_secret():
    example = dict(re.findall(r"(?m)^(\w+)=(.*)$", (DEPLOYMENTS / ".env.example").read_text()))
    used = set(re.findall(r"\$\{(\w+)", (DEPLOYMENTS / "compose.yaml").read_text()))
    assert used == example.keys()
    assert {name: value for name, value in example.items() if "PASSWORD" in name and value} == {}
    defaults = re.findall(r"\$\{(\w+):-([^}]*)\}", (DEPLOYMENTS / "compose.yaml").read_text())
    assert all(example[name] == value for name, value in defaults)
    ignored = (DEPLOYMENTS / ".gitignore").read_text().split()
    assert {".env", "secrets/"} <= set(ignored)


def test_no_service_is_given_a_secret_in_clear():
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name) or ("://" in str(value) and "@" in str(value)):
                assert "${" in value, name


def test_our_variables_are_read_by_the_settings(monkeypatch):
    fields = {f"RECSYS_{name.upper()}" for name in Settings.__dataclass_fields__}
    shop = {"RECSYS_EVENTS", "RECSYS_ITEMS", "RECSYS_COLUMNS", "RECSYS_TIMEZONE"}
    for name in shop:
        monkeypatch.setenv(name, "somewhere")
    assert len(shop_variables()) == len(shop)
    text = "".join(path.read_text() for path in named_files())
    assert set(re.findall(r"\bRECSYS_[A-Z_]+\b", text)) <= fields | shop


def named_files() -> list[Path]:
    """Whatever here is applied to an engine."""
    return [
        *DOCKERFILES,
        *(path for path in DEPLOYMENTS.rglob("*") if path.suffix in (".yaml", ".json", ".sh", ".conf")),
    ]


def test_variables_of_the_platforms_are_read_by_them():
    """A name that MLflow or Prefect does not know would be ignored without a word."""
    import mlflow.cli
    import mlflow.environment_variables as known
    from prefect.settings import Settings as PrefectSettings

    text = "".join(re.sub(r"(?m)#.*$", "", path.read_text()) for path in named_files())
    options = {option.envvar for command in mlflow.cli.cli.commands.values() for option in command.params}
    for name in set(re.findall(r"\bMLFLOW_[A-Z0-9_]+\b", text)) - {"MLFLOW_DATABASE_PASSWORD"}:
        assert name in options or hasattr(known, name), name
    prefects = PrefectSettings().to_environment_variables(exclude_unset=False)
    for name in set(re.findall(r"\bPREFECT_[A-Z0-9_]+\b", text)) - {"PREFECT_DATABASE_PASSWORD"}:
        later = name.replace("PREFECT_API_DATABASE", "PREFECT_SERVER_DATABASE").replace(
            "PREFECT_UI", "PREFECT_SERVER_UI"
        )
        assert name.startswith("PREFECT_INTEGRATIONS_") or later in prefects or later in accepted(PrefectSettings), name


def accepted(model) -> set[str]:
    """Every name that a settings class takes from the environment, those without a value included."""
    names: set[str] = set()
    prefix = model.model_config.get("env_prefix", "")
    for field_name, about in model.model_fields.items():
        kind = about.annotation
        if hasattr(kind, "model_fields"):
            names |= accepted(kind)
        names.add(f"{prefix}{field_name}".upper())
    return names


@pytest.mark.parametrize("name", SERVICES)
def test_a_command_is_one_that_its_packages_bring(name):
    service = SERVICES[name]
    words = command_of(service)
    image = image_of(service)
    if name in ("postgres", "store", "nginx"):
        return
    text = " ".join(words)
    scripts = {entry.name for entry in entry_points(group="console_scripts")}
    if words[0] == "sh":
        program, *rest = shlex.split(text.rpartition("exec ")[2])
    else:
        program, *rest = words
    if program == "python":
        assert rest == ["-m", "flows.worker"]
    else:
        assert program in scripts
        assert_options_exist(program, rest)
    for path in re.findall(r"/opt/servers/(\S+\.py)", text):
        assert any(f"/opt/servers/{path}" in copied for copied in image.words["COPY"])


def assert_options_exist(program: str, words: list[str]) -> None:
    """Every option is one of the command it is given to, port and host included."""
    given = {word for word in words if word.startswith("--")}
    if program == "mlflow":
        import mlflow.cli

        known = {
            opt for param in mlflow.cli.cli.commands[words[0]].params for opt in [*param.opts, *param.secondary_opts]
        }
    elif program == "recsys":
        import typer

        from flows.cli.app import app

        known = {opt for param in typer.main.get_command(app).commands[words[0]].params for opt in param.opts}
    else:
        prefect = str(Path(sys.executable).with_name("prefect"))
        wide = {**os.environ, "COLUMNS": "200"}
        done = subprocess.run([prefect, *words[:2], "--help"], capture_output=True, text=True, check=True, env=wide)
        known = set(re.findall(r"--[a-z-]+", done.stdout))
    assert given <= known, given - known


def test_ports_agree_between_files():
    behind = dict(re.findall(r"server (\w+):(\d+);", NGINX))
    assert behind == {"prefect": "4200", "mlflow": "5000", "serve": "8000"}
    for name, port in behind.items():
        image = image_of(SERVICES[name])
        assert image.words["EXPOSE"][-1] == port
        assert f":{port}/" in image.words["HEALTHCHECK"][-1]
        words = shlex.split(" ".join(command_of(SERVICES[name])))
        assert words[words.index("--port") + 1] == port
        assert words[words.index("--host") + 1] == "0.0.0.0"
    listens = re.search(r"listen (\d+) ssl", NGINX)[1]
    assert SERVICES["nginx"]["ports"][0].endswith(f":{listens}")
    worker = SERVICES["worker"]["environment"]
    assert worker["PREFECT_API_URL"] == f"http://prefect:{behind['prefect']}/api"
    assert (
        worker["MLFLOW_TRACKING_URI"] == SERVICES["serve"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    )
    assert SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"] == "mlflow:5000"
    assert "PREFECT_API_URL" not in SERVICES["serve"]["environment"], "it has no Prefect to tell anything with"


# -- the gate and what prepares it


def test_nothing_but_the_health_check_goes_without_a_password():
    open_ones = re.findall(r"location ([^{]+)\{[^}]*auth_basic off", NGINX)
    assert [each.strip() for each in open_ones] == ["= /gate/health"]
    assert re.search(r"(?m)^        auth_basic_user_file ", NGINX), "for the whole server"
    for body in re.findall(r"location [^{]+\{([^}]*)\}", NGINX):
        if "proxy_set_header" in body:  # it replaces those of the server, all of them
            assert 'proxy_set_header Authorization "";' in body


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of deployments after two users were let in."""
    folder = tmp_path_factory.mktemp("checkout") / "deployments"
    (folder / "compose").mkdir(parents=True)
    for name in ("compose/prepare.sh", ".env.example"):
        (folder / name).write_bytes((DEPLOYMENTS / name).read_bytes())
    for user in ("ada", "bob", "ada"):
        words = ["sh", str(folder / "compose" / "prepare.sh"), "recsys.example.com", user, "8443"]
        done = subprocess.run(words, input=f"word of {user}\n", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


def test_preparing_makes_up_every_secret_and_lets_people_in(prepared):
    made = dict(re.findall(r"(?m)^(\w+)=(.*)$", (prepared / ".env").read_text()))
    assert made["PUBLIC_ORIGIN"] == "https://recsys.example.com:8443"
    words = [value for name, value in made.items() if name.endswith("_PASSWORD")]
    assert len(set(words)) == len(words) == 4
    assert all(re.fullmatch(r"[0-9a-f]{48}", word) for word in words)
    assert (prepared / ".env").stat().st_mode & 0o777 == 0o600
    assert (prepared / "secrets").stat().st_mode & 0o777 == 0o700
    people = (prepared / "secrets" / "htpasswd").read_text().splitlines()
    assert sorted(line.split(":")[0] for line in people) == ["ada", "bob"]
    salt = next(line for line in people if line.startswith("ada:")).split("$")[2]
    again = ["openssl", "passwd", "-6", "-salt", salt, "word of ada"]
    hashed = subprocess.run(again, capture_output=True, text=True, check=True).stdout.strip()
    assert f"ada:{hashed}" in people


def test_a_user_cannot_write_a_second_line(prepared):
    words = ["sh", str(prepared / "compose" / "prepare.sh"), "recsys.example.com", "eve:x\nmallory"]
    assert subprocess.run(words, input="x\n", capture_output=True, text=True).returncode == 2
