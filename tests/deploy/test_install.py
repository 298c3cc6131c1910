from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.board_fixture import (
    DEPLOY,
    JETPACK_5,
    JETPACK_6,
    JETPACK_7,
    install,
    make_system,
    make_wheel,
    make_wheels,
    note_hashes,
    tree,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="for boards, which run Linux")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return make_wheels(tmp_path / "wheels")


def version_of(root: Path, module: str, prefix: str = "opt/s2a-edge") -> str:
    command = [
        str(root / prefix / "venv/bin/python"),
        "-I",
        "-c",
        f"import {module} as m; print(m.version)",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return str(done.stdout).strip()


@pytest.mark.parametrize(
    ("release", "named"), [(JETPACK_6, "JetPack 6 "), (JETPACK_7, "JetPack 7 ")]
)
def test_without_apply_nothing_is_changed(
    tmp_path: Path, wheels: Path, release: str, named: str
) -> None:
    root = make_system(tmp_path / "system", release)
    before = tree(tmp_path)
    done = install("--wheels", wheels, "--root", root, "--python", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert named in done.stdout
    assert "install s2a_edge-1.0-py3-none-any.whl into /opt/s2a-edge/venv" in done.stdout
    assert "Nothing was changed" in done.stdout
    assert tree(tmp_path) == before


def test_apply_installs_and_again_changes_nothing(tmp_path: Path, wheels: Path) -> None:
    root = make_system(tmp_path / "system")
    key = tmp_path / "solar.pub"
    key.write_text("a key\n")
    board_options = ("--prefix", "/srv/board", "--user", "trainer", "--trust", key)
    options = ("--wheels", wheels, "--root", root, "--python", sys.executable, "--apply")
    done = install(*options, *board_options)
    assert done.returncode == 0, done.stdout + done.stderr
    board = root / "srv/board"
    assert version_of(root, "s2a_edge", "srv/board") == "1.0"
    assert version_of(root, "onnxruntime", "srv/board") == "1.0"
    assert board.stat().st_mode & 0o7777 == 0o1775
    assert (board / "trust/solar.pub").read_text() == "a key\n"
    assert (board / "bin/s2a-edge-collect").stat().st_mode & 0o111
    unit = (root / "etc/systemd/system/s2a-edge-train.service").read_text()
    assert "/opt/s2a-edge" not in unit
    assert "User=trainer\nGroup=trainer\n" in unit
    assert "ExecStart=/srv/board/venv/bin/s2a-edge start /srv/board --" in unit
    assert (root / "etc/udev/rules.d/99-s2a-edge.rules").exists()

    before = tree(root)
    done = install(*options, *board_options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none: everything is in place" in done.stdout
    assert {n: s for n, s in tree(root).items() if "__pycache__" not in n} == {
        n: s for n, s in before.items() if "__pycache__" not in n
    }


@pytest.mark.slow
def test_new_wheels_and_another_runtime_replace_the_old(tmp_path: Path, wheels: Path) -> None:
    root = make_system(tmp_path / "system")
    options = ("--root", root, "--python", sys.executable, "--apply")
    assert install("--wheels", wheels, *options).returncode == 0
    run = root / "opt/s2a-edge/runs/night"
    run.mkdir()
    newer = make_wheels(tmp_path / "newer", "1.1")
    (tmp_path / "vendor").mkdir()
    runtime = make_wheel(tmp_path / "vendor", "onnxruntime", "2.0+gpu")
    done = install("--wheels", newer, "--onnxruntime", runtime, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert version_of(root, "s2a_edge") == "1.1"
    assert version_of(root, "onnxruntime") == "2.0+gpu"
    assert run.is_dir()


@pytest.mark.slow
def test_a_step_that_fails_is_repaired_by_the_next_run(tmp_path: Path, wheels: Path) -> None:
    root = make_system(tmp_path / "system")
    lacking = next(wheels.glob("cobs-*"))
    content = lacking.read_bytes()
    lacking.unlink()
    note_hashes(wheels)
    options = ("--wheels", wheels, "--root", root, "--python", sys.executable, "--apply")
    done = install(*options)
    assert done.returncode == 1
    assert "Done." not in done.stdout
    lacking.write_bytes(content)
    note_hashes(wheels)
    assert install(*options).returncode == 0
    assert version_of(root, "cobs") == "1.0"


@pytest.mark.parametrize(
    ("release", "memory_kib", "python", "said"),
    [
        (JETPACK_5, 7_802_880, sys.executable, 'expected JetPack 6 or 7, got "# R35 (release)'),
        (None, 7_802_880, sys.executable, "got no /etc/nv_tegra_release"),
        (JETPACK_6, 1_000_000, sys.executable, "memory: expected 1800 MiB, got 976"),
        (JETPACK_6, 7_802_880, "no-such-python", "python: expected no-such-python, got none"),
    ],
)
def test_a_board_that_does_not_suit_is_left_alone(
    tmp_path: Path, wheels: Path, release: str | None, memory_kib: int, python: str, said: str
) -> None:
    root = make_system(tmp_path / "system", release, memory_kib)
    before = tree(root)
    done = install("--wheels", wheels, "--root", root, "--python", python, "--apply")
    assert done.returncode == 1
    assert said in done.stdout
    assert "nothing was changed" in done.stdout
    assert tree(root) == before


def test_an_old_python_is_refused(tmp_path: Path, wheels: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.8;; *) exit 1;; esac\n')
    old.chmod(0o755)
    root = make_system(tmp_path / "system")
    done = install("--wheels", wheels, "--root", root, "--python", old)
    assert done.returncode == 1
    assert "python: expected 3.10 or newer, got 3.8" in done.stdout


def test_damaged_wheels_are_refused(tmp_path: Path, wheels: Path) -> None:
    next(wheels.glob("rich-*")).write_bytes(b"something else")
    root = make_system(tmp_path / "system")
    done = install("--wheels", wheels, "--root", root, "--python", sys.executable, "--apply")
    assert done.returncode == 1
    assert "wheels: expected the hashes of SHA256SUMS" in done.stdout
    assert not (root / "opt").exists()


def test_a_foreign_venv_folder_is_not_touched(tmp_path: Path, wheels: Path) -> None:
    root = make_system(tmp_path / "system")
    (root / "opt/s2a-edge/venv").mkdir(parents=True)
    (root / "opt/s2a-edge/venv/mine").write_text("mine")
    done = install("--wheels", wheels, "--root", root, "--python", sys.executable, "--apply")
    assert done.returncode == 1
    assert "got something else" in done.stdout
    assert (root / "opt/s2a-edge/venv/mine").read_text() == "mine"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--wheels",),
        ("--wheels", "w", "--frob"),
        ("--wheels", "w", "--prefix", "relative"),
        ("--wheels", "w", "--prefix", "/a/../b"),
        ("--wheels", "w", "--prefix", "/a b"),
        ("--wheels", "w", "--prefix", "/a|b"),
        ("--wheels", "w", "--user", "root"),
        ("--wheels", "w", "--user", "-x"),
        ("--wheels", "w", "--enable", "ssh.service"),
    ],
)
def test_wrong_usage_is_2(options: tuple[str, ...]) -> None:
    done = install(*options)
    assert done.returncode == 2
    assert "usage: install.sh" in done.stderr


def test_packages_are_those_of_the_project() -> None:
    """With another runtime s2a-edge is installed without its dependencies, which stand here."""
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.S | re.M)
    serial = re.search(r"^serial = \[\n(.*?)^\]", project, re.S | re.M)
    assert block and serial
    script = (DEPLOY / "install.sh").read_text()
    for found, name in ((block, "packages"), (serial, "serial_packages")):
        wanted = set(re.findall(r'^    "([A-Za-z0-9_-]+)', found[1], re.M)) - {"onnxruntime"}
        listed = re.search(rf"^{name}=\((.*)\)$", script, re.M)
        assert listed and set(re.findall(r"(?:^| )'?([A-Za-z0-9_-]+)", listed[1])) == wanted
