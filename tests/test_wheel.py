"""What users install: the wheel holds the package, the device profiles and the licence."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import s2a_edge

_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=_ROOT, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_it_has_the_version_of_the_package(wheel: Path) -> None:
    assert wheel.name == f"s2a_edge-{s2a_edge.__version__}-py3-none-any.whl"


def test_it_ships_profiles_licence_and_command(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    profiles = {f"s2a_edge/device_profiles/{p.name}" for p in _ROOT.glob("device_profiles/*.toml")}
    assert profiles
    assert profiles <= set(names)
    sources = {f"s2a_edge/native/{n}" for n in ("kernels.c", "kernels.h", "ops.c", "ort_abi.h")}
    assert sources <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "s2a-edge = s2a_edge.cli:main" in text


def test_profiles_are_found_once_installed(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from s2a_edge.spec.device_profile import profiles_folder; print(profiles_folder())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()) == tmp_path / "s2a_edge/device_profiles"
