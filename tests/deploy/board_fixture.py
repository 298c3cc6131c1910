"""A folder that looks like a board's system, and wheels that stand in for the real ones."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"
JETPACK_6 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
JETPACK_7 = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n"
JETPACK_5 = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64\n"
NEEDED = (
    *("onnxruntime", "numpy", "safetensors", "Pillow", "typer", "rich", "cryptography", "tomli"),
    *("pyserial", "cobs"),
)


def make_system(root: Path, release: str | None = JETPACK_6, memory_kib: int = 7_802_880) -> Path:
    (root / "etc").mkdir(parents=True)
    (root / "proc").mkdir()
    if release is not None:
        (root / "etc/nv_tegra_release").write_text(release)
    sizes = f"MemTotal: {memory_kib} kB\nMemFree: 1 kB\nMemAvailable: {memory_kib // 2} kB\n"
    (root / "proc/meminfo").write_text(sizes)
    return root


def make_wheel(folder: Path, name: str, version: str = "1.0", needs: Sequence[str] = ()) -> Path:
    """A wheel of one module that knows its version."""
    module = name.lower().replace("-", "_")
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{module}.py", f"version = {version!r}\n")
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        about += "".join(f"Requires-Dist: {needed}\n" for needed in needs)
        file.writestr(f"{info}/METADATA", about)
        file.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr(f"{info}/RECORD", f"{module}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    return path


def make_wheels(folder: Path, version: str = "1.0") -> Path:
    folder.mkdir()
    for name in NEEDED:
        make_wheel(folder, name)
    make_wheel(folder, "s2a-edge", version, NEEDED[:-2])
    note_hashes(folder)
    return folder


def note_hashes(folder: Path) -> None:
    wheels = sorted(folder.glob("*.whl"))
    lines = [f"{hashlib.sha256(w.read_bytes()).hexdigest()}  {w.name}\n" for w in wheels]
    (folder / "SHA256SUMS").write_text("".join(lines))


def install(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run install.sh; ``environment`` takes the place of this process's."""
    return subprocess.run(
        ["bash", DEPLOY / "install.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=environment,
    )


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, size and time of everything below a folder."""
    return {
        str(path.relative_to(folder)): (s.st_mode, s.st_size, s.st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        for s in [path.lstat()]
    }
