"""The README is true: its tree, its commands, its knobs, its links."""

import re
from pathlib import Path

import pytest

from flows.cli.app import app
from recsys.config import NightConfig
from recsys.presets import PRESETS

ROOT = Path(__file__).parents[1]
SECURITY = (ROOT / "docs/security.md").read_text()
README = (ROOT / "README.md").read_text()


def test_every_module_of_the_library_is_in_the_tree_and_every_name_there_is_a_file():
    tree = README.split("## The tree")[1].split("\n## ")[0]
    named = set(re.findall(r"\b([a-z_]+)\.py\b", tree))
    there = {p.stem for p in (ROOT / "recsys").glob("*.py")} - {"__init__", "errors", "resolve"}
    assert there <= named
    everywhere = {p.stem for top in ("recsys", "flows", "benchmarks") for p in (ROOT / top).rglob("*.py")}
    assert named <= everywhere


def test_the_commands_are_those_there_are():
    shown = set(re.findall(r"^    recsys ([a-z-]+)", README, re.MULTILINE))
    registered = {command.name for command in app.registered_commands}
    assert shown == registered


def test_the_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make ([a-z]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_sections_and_presets_are_those_of_the_configuration():
    knobs = README.split("## The knobs")[1].split("\n## ")[0]
    for section in NightConfig.model_fields:
        assert f"`{section}`" in knobs
    assert "|".join(PRESETS) in knobs


def test_the_variables_of_the_environment_are_read():
    settings = (ROOT / "tasks/adapters/settings.py").read_text()
    for variable in set(re.findall(r"RECSYS_([A-Z_]+)", README)):
        assert f"RECSYS_{variable}" in settings or f'_count("{variable}"' in settings


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_a_link_leads_somewhere(link):
    assert link.startswith("http") or (ROOT / link).exists()


def test_what_holds_a_promise_of_security_is_there():
    named = re.findall(
        r"`((?:tests|recsys|tasks|flows|deployments)/[\w./-]+\.(?:py|conf|sh|servers))(?:::(\w+))?`", SECURITY
    )
    assert len(named) > 20
    for path, test in named:
        assert (ROOT / path).is_file(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), test


def test_vulnerabilities_are_told_of_the_versions_that_are_locked():
    lock = (ROOT / "deployments/constraints.txt").read_text().splitlines()
    told = re.findall(r"(?m)^\| ([a-z_]+) ([\d.]+) \|", SECURITY)
    assert len(told) > 5
    assert {f"{name}=={version}" for name, version in told} <= set(lock), "look at the table anew"


def test_every_error_of_the_tree_is_raised_somewhere():
    errors = re.findall(r"^class (\w+)\(", (ROOT / "recsys/errors.py").read_text(), re.MULTILINE)
    sources = [p.read_text() for top in ("recsys", "tasks", "flows") for p in (ROOT / top).rglob("*.py")]
    abstract = {"RecsysError", "InputError"}
    for error in set(errors) - abstract:
        assert any(re.search(rf"raise {error}\(|return {error}\(|\({error}\):", text) for text in sources), error
