from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.board_fixture import DEPLOY

UNITS = sorted((DEPLOY / "systemd").iterdir())
SCRIPTS = (
    DEPLOY / "install.sh",
    DEPLOY / "bin/s2a-edge-collect",
    *(DEPLOY.parent / "tools" / name for name in ("make_wheelhouse", "demo", "test")),
    DEPLOY.parent / ".ci/run",
)
HARDENING = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "read-only",
    "PrivateTmp": "yes",
    "PrivateNetwork": "yes",
    "RestrictAddressFamilies": "AF_UNIX",
    "SystemCallFilter": "@system-service",
    "MemoryMax": "85%",
}
RULE = re.compile(r'(?:[A-Z]+(?:\{\w+\})?(?:==|!=|\+=|=)"[^"]*"(?:, |$))+')


def read_unit(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(
        interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=False
    )
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys keep their case
    unit.read_string(path.read_text().replace("\\\n", " "))
    return unit


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_can_be_run(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111
    assert "set -" in script.read_text()


def tool(name: str) -> str:
    """A program of the `dev` extra, also where its environment is not activated."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"needs {name}: pip install '.[dev]'")
    return found


def test_shellcheck_has_nothing_to_say() -> None:
    command = [tool("shellcheck"), *map(str, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Rendered as install.sh does, since verify looks for the programs."""
    for program in ("venv/bin/s2a-edge", "bin/s2a-edge-collect"):
        (tmp_path / program).parent.mkdir(parents=True)
        (tmp_path / program).touch(0o755)
    rendered: list[str] = []
    for unit in UNITS:
        path = tmp_path / unit.name
        path.write_text(unit.read_text().replace("/opt/s2a-edge", str(tmp_path)))
        rendered.append(str(path))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *rendered]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_has_nothing_to_say() -> None:
    file = DEPLOY / "docker/Dockerfile"
    done = subprocess.run([tool("hadolint"), file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["s2a-edge-train.service", "s2a-edge-serial.service"])
def test_services_are_hardened_and_not_root(name: str) -> None:
    service = read_unit(DEPLOY / "systemd" / name)["Service"]
    assert {key: service[key] for key in HARDENING} == HARDENING
    assert service["User"] == service["Group"] == "s2a-edge"
    assert int(service["OOMScoreAdjust"]) > 0
    assert service["ReadWritePaths"] == "/opt/s2a-edge"


def test_the_training_service_notifies_and_can_be_stopped() -> None:
    unit = read_unit(DEPLOY / "systemd/s2a-edge-train.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "all"  # the child of `start` is the one that notifies
    assert service["KillMode"] == "mixed"
    assert service["SuccessExitStatus"] == "143"
    assert service["WatchdogSec"] == "5min"
    assert service["Restart"] == "on-failure"
    # More starts than `s2a-edge start` counts before it goes back.
    assert int(unit["Unit"]["StartLimitBurst"]) > 3
    words = service["ExecStart"].split()
    assert words[1:4] == ["start", "/opt/s2a-edge", "--"]
    assert words[4:7] == ["/opt/s2a-edge/venv/bin/s2a-edge", "train", "{bundle}"]
    assert words[words.index("--out") + 1] == "{runs}/night"


def test_the_options_of_the_training_service_exist() -> None:
    from typer.main import get_command

    from s2a_edge.cli import app

    train = get_command(app).commands["train"]  # type: ignore[attr-defined]  # a click group
    known = {flag for parameter in train.params for flag in parameter.opts}
    text = (DEPLOY / "systemd/s2a-edge-train.service").read_text()
    used = set(re.findall(r"(?<= )--[a-z-]+|(?<==)--[a-z-]+", text.split("train {bundle}")[1]))
    used |= set(re.findall(r"--[a-z-]+", text.split("S2A_EDGE_TRAIN_ARGS=")[1].splitlines()[0]))
    assert {"--data", "--out", "--resume", "--this-device"} <= used
    assert used <= known


@pytest.mark.parametrize("path", sorted((DEPLOY / "udev").iterdir()), ids=lambda p: p.name)
def test_udev_rules_parse(path: Path) -> None:
    assert re.fullmatch(r"99-[a-z0-9-]+\.rules", path.name)
    rules = [x for x in path.read_text().splitlines() if x and not x.startswith("#")]
    assert rules
    assert all(RULE.fullmatch(rule) for rule in rules)


def test_the_gadget_rule_starts_a_unit_that_exists() -> None:
    text = (DEPLOY / "udev/99-s2a-edge.rules").read_text()
    wanted = re.search(r'SYSTEMD_WANTS\}\+="([^"]+)"', text)
    assert wanted and (DEPLOY / "systemd" / wanted[1]).exists()


def test_the_host_rule_names_the_gadget_that_links_looks_for() -> None:
    from s2a_edge.link import usb

    text = (DEPLOY / "udev/99-s2a-edge-host.rules").read_text()
    assert f'ATTRS{{idVendor}}=="{usb._NVIDIA_VID:04x}"' in text
    assert f'ATTRS{{idProduct}}=="{usb._GADGET_PID:04x}"' in text


def test_the_dockerfile_drops_root_last() -> None:
    lines = (DEPLOY / "docker/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    words = [x.split(None, 1) for x in lines if x.strip() and not x.lstrip().startswith("#")]
    names = [w[0] for w in words]
    assert set(names) <= {
        *("ARG", "FROM", "RUN", "COPY", "USER", "ENV", "VOLUME", "WORKDIR", "ENTRYPOINT", "CMD")
    }
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    assert dict(words)["USER"] == "990"
