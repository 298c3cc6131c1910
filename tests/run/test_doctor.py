"""Every module of the profiles, well and ill, from trees of its files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from s2a_edge.cli import app
from s2a_edge.run.doctor import Finding, Patient, diagnose
from s2a_edge.run.health import read_health
from s2a_edge.run.probe import detect
from s2a_edge.spec.device_profile import list_profiles, load_profile
from s2a_edge.spec.profile_facts import DeviceProfile
from s2a_edge.spec.units import GIB, KIB, MIB
from tests.run.board_trees import Tree, group, healthy_tree, mem_total_bytes, zram

JETSONS = [profile for profile in list_profiles() if profile.kind == "jetson"]
TRAINING = [profile for profile in JETSONS if profile.can_train]
ORIN = "orin-nano-8gb"


def examine(root: Path) -> tuple[Finding, ...]:
    facts = detect(root)
    profile = load_profile(facts.profile) if facts.profile else None
    return diagnose(Patient(facts, read_health(facts, root), profile))


def topics(findings: tuple[Finding, ...]) -> dict[str, str]:
    return {finding.topic: finding.severity for finding in findings}


@pytest.fixture
def orin() -> Tree:
    return healthy_tree(load_profile(ORIN))


@pytest.mark.parametrize("profile", JETSONS, ids=lambda p: p.name)
def test_every_module_is_known_by_its_files(tmp_path: Path, profile: DeviceProfile) -> None:
    root = healthy_tree(profile).write(tmp_path)
    done = CliRunner().invoke(app, ["devices", "detect", "--root", str(root), "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["profile"] == profile.name
    assert found["mem_total_bytes"] // KIB == mem_total_bytes(profile) // KIB
    assert found["thermal_zones"] == [{"name": "tj-thermal", "temperature_c": 48.5}]


@pytest.mark.parametrize("profile", TRAINING, ids=lambda p: p.name)
def test_a_healthy_module_that_trains_has_nothing_to_mend(
    tmp_path: Path, profile: DeviceProfile
) -> None:
    assert examine(healthy_tree(profile).write(tmp_path)) == ()
    done = CliRunner().invoke(app, ["doctor", "--root", str(tmp_path), "--strict"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "nothing to mend" in done.stdout
    assert profile.title in done.stdout


@pytest.mark.parametrize(
    "profile", [p for p in JETSONS if not p.can_train], ids=lambda p: p.name
)
def test_a_module_that_does_not_train_is_told_why(tmp_path: Path, profile: DeviceProfile) -> None:
    root = healthy_tree(profile).write(tmp_path)
    found = topics(examine(root))
    assert found["board"] == found["Python"] == found["ONNX Runtime"] == "fails"
    done = CliRunner().invoke(app, ["doctor", "--root", str(root), "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["healthy"] is False
    assert profile.can_train_reason in [finding["consequence"] for finding in told["findings"]]


@pytest.mark.parametrize("profile", TRAINING, ids=lambda p: p.name)
def test_every_module_that_trains_with_everything_wrong(
    tmp_path: Path, profile: DeviceProfile
) -> None:
    tree = healthy_tree(profile)
    total_kb = mem_total_bytes(profile) // KIB
    tree.files |= {
        "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 1\n",
        "proc/meminfo": f"MemTotal: {total_kb} kB\nMemAvailable: {100 * MIB // KIB} kB\n",
        "proc/sys/vm/overcommit_memory": "2\n",
        "proc/pressure/memory": "",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
        "sys/devices/system/cpu/online": "0-1\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/class/thermal/thermal_zone0/temp": "96000\n",
        **zram(used_bytes=2 * GIB),
        **group(),
    }
    tree.files = {
        name: text
        for name, text in tree.files.items()
        if "dist-info" not in name and "python3" not in name
    }
    tree.files["usr/bin/python3.8"] = ""
    tree.links = {"etc/systemd/system/default.target": "/lib/systemd/system/graphical.target"}
    findings = examine(tree.write(tmp_path))
    expected = {
        "release": "fails", "Python": "fails", "ONNX Runtime": "fails", "memory": "fails",
        "desktop": "risk", "swap": "risk", "heat": "risk", "overcommit": "risk",
        "zram": "note", "huge pages": "note", "pressure": "note", "processors": "note",
        "control group": "note",
    }  # fmt: skip
    found = topics(findings)
    assert {topic: found.get(topic) for topic in expected} == expected
    order = [("fails", "risk", "note").index(finding.severity) for finding in findings]
    assert order == sorted(order)
    assert all(f.found and f.consequence and f.mend for f in findings)


@pytest.mark.parametrize(
    ("changed", "topic", "severity"),
    [
        (zram(), "zram", "note"),
        (group(limit_bytes=200 * MIB), "control group", "note"),
        (group(limit_bytes=200 * MIB, usage_bytes=150 * MIB), "control group", "risk"),
        ({"var/lib/nvpmodel/status": "pmode:0001\n"}, "power mode", "note"),
        ({"sys/class/thermal/thermal_zone0/temp": "86000\n"}, "heat", "note"),
        ({"etc/nv_tegra_release": ""}, "release", "risk"),
        ({"proc/meminfo": "MemTotal: 8000000 kB\n"}, "memory", "risk"),
        ({"proc/meminfo": f"MemTotal: {7620 * 1024} kB\nMemAvailable: 1000000 kB\n"},
         "memory", "risk"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_the_one_thing_told(
    orin: Tree, tmp_path: Path, changed: dict[str, str], topic: str, severity: str
) -> None:
    orin.files |= changed
    assert topics(examine(orin.write(tmp_path))) == {topic: severity}


def test_an_older_runtime_that_works_is_a_note(orin: Tree, tmp_path: Path) -> None:
    orin.files = {n.replace("1.23.0", "1.22.1"): text for n, text in orin.files.items()}
    (finding,) = examine(orin.write(tmp_path))
    assert (finding.topic, finding.severity) == ("ONNX Runtime", "note")
    assert "micro-batch" in finding.consequence


def test_a_runtime_without_cuda_and_a_full_disk(orin: Tree, tmp_path: Path) -> None:
    """Facts of the machine itself, which another root does not tell."""
    facts = detect(orin.write(tmp_path))
    health = read_health(facts, tmp_path)
    facts = dataclasses.replace(facts, providers=("CPUExecutionProvider",))
    health = dataclasses.replace(health, disk_free_bytes=100 * MIB)
    found = topics(diagnose(Patient(facts, health, load_profile(ORIN))))
    assert found == {"ONNX Runtime": "note", "disk": "fails"}


def test_an_unknown_jetson_is_a_risk_and_not_detected(tmp_path: Path) -> None:
    tree = Tree({"etc/nv_boot_control.conf": "TNSPEC 9999-300-0001-A.0-1-0-x-\n"})
    root = str(tree.write(tmp_path))
    assert CliRunner().invoke(app, ["devices", "detect", "--root", root]).exit_code == 1
    assert topics(examine(tmp_path))["board"] == "risk"


def test_risks_count_when_asked_to(orin: Tree, tmp_path: Path) -> None:
    orin.links = {"etc/systemd/system/default.target": "/lib/systemd/system/graphical.target"}
    root = str(orin.write(tmp_path))
    assert CliRunner().invoke(app, ["doctor", "--root", root]).exit_code == 0
    assert CliRunner().invoke(app, ["doctor", "--root", root, "--strict"]).exit_code == 1


def test_this_machine_can_be_examined() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == (0 if told["healthy"] else 1)
    assert told["health"]["onnxruntime"] and told["health"]["disk_free_bytes"] > 0


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=60))
def test_junk_never_raises(tmp_path: Path, junk: bytes) -> None:
    for name in healthy_tree(load_profile(ORIN)).files:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(junk)
    examine(tmp_path)
