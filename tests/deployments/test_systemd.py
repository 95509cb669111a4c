"""The units of systemd: what systemd itself thinks of them, and that they start what there is."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "deployments" / "systemd").glob("*/recsys.service"))
RECSYS = Path(sys.executable).with_name("recsys")


def unit(path: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str
    parsed.read(path)
    return parsed


def test_there_is_one_for_a_person_and_one_for_a_machine():
    assert [path.parent.name for path in UNITS] == ["system", "user"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.parent.name)
def test_it_stays_says_when_it_is_ready_and_comes_back(path):
    service = unit(path)["Service"]
    assert service["ExecStart"].endswith("/recsys up --foreground")
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"
    assert service["KillSignal"] == "SIGTERM"
    assert service["NoNewPrivileges"] == "yes"


def test_the_machines_may_write_its_home_alone():
    service = unit(UNITS[0])["Service"]
    assert service["ProtectSystem"] == "strict"
    assert f"RECSYS_HOME={service['ReadWritePaths']}" == service["Environment"]
    assert service["PrivateTmp"] == "yes"
    assert service["User"] != "root"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.parent.name)
def test_systemd_finds_nothing_to_say(path, tmp_path):
    here = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={RECSYS}", path.read_text())
    (tmp_path / "recsys.service").write_text(re.sub(r"(?m)^(User|Group)=recsys$", r"\1=daemon", here))
    asked = ["systemd-analyze", f"--{path.parent.name}", "--man=no", "verify", str(tmp_path / "recsys.service")]
    said = subprocess.run(
        asked, capture_output=True, text=True, env={"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    )
    assert said.returncode == 0, said.stderr
    ours = [line for line in said.stderr.splitlines() if "recsys.service" in line]
    assert ours == []
