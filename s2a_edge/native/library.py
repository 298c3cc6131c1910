"""The shared library of the kernels: compiled once on each machine, for its very processor.

A wheel that fits every processor could not use the vectors of any; a board has a compiler (JetPack
brings gcc), and compiling takes about two seconds. What was built is kept in the user's cache
folder under a name made of the sources, the compiler and the processor.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.spec.bundle_graphs import NATIVE_DOMAIN

_SOURCES = ("kernels.c", "ops.c")
_HEADERS = ("kernels.h", "ort_abi.h")
# No errno and no floating-point traps: neither is looked at, and loops with them stay scalar.
# Numbers that are not finite keep their meaning.
_FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-fvisibility=hidden", "-fopenmp-simd",
          "-fno-math-errno", "-fno-trapping-math")
_TIMEOUT_S = 120
_DISABLED = "S2A_EDGE_NATIVE"
_FOLDER = "S2A_EDGE_CACHE"


@dataclass(frozen=True)
class NativeStatus:
    """Whether there are kernels in C here.

    Attributes:
        library: the shared library; None where there is none.
        reason: why not, or how it was made.
    """

    library: Path | None
    reason: str


def find_library(*, build: bool = True) -> Path | None:
    """The library for this machine, compiled now if it was not before; None where that fails."""
    return native_status(build=build).library


def native_status(*, build: bool = True) -> NativeStatus:
    """As :func:`find_library`, with the reason. ``S2A_EDGE_NATIVE=0`` does without."""
    if os.environ.get(_DISABLED) == "0":
        return NativeStatus(None, f"{_DISABLED}=0")
    return _status(build, os.environ.get(_FOLDER), os.environ.get("CC"))


@functools.lru_cache(maxsize=8)
def _status(build: bool, folder: str | None, wanted: str | None) -> NativeStatus:
    compiler = shutil.which(wanted) if wanted else next(
        filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if platform.system() != "Linux":
        return NativeStatus(None, f"kernels are built on Linux only, not on {platform.system()}")
    cache = _cache_folder(folder)
    if cache is None:
        return NativeStatus(None, f"no folder to build in: set {_FOLDER}, or HOME")
    try:
        found = _built(cache, compiler)
        if found is not None:
            return NativeStatus(found, f"built before with {compiler or 'a compiler'}")
        if compiler is None:
            return NativeStatus(None, "no C compiler (cc): apt-get install gcc libc6-dev")
        if not build:
            return NativeStatus(None, "not built yet")
        return _build(cache, compiler)
    except OSError as error:
        return NativeStatus(None, f"{cache}: {error.strerror or error}")


def _cache_folder(folder: str | None) -> Path | None:
    if folder:
        return Path(folder) / "native"
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:  # no HOME and no entry in the password database
        return None
    return Path(base) / "s2a-edge" / "native"


def _built(cache: Path, compiler: str | None) -> Path | None:
    path = cache / _file_name(compiler)
    return path if path.exists() and _ours(path) and _ours(cache) else None


def _ours(path: Path) -> bool:
    """What somebody else can write is not loaded into this process."""
    status = path.stat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & others


def _file_name(compiler: str | None) -> str:
    """Of the sources, the processor and the compiler; without one, of whatever was there."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for name in (*_SOURCES, *_HEADERS):
        digest.update((here / name).read_bytes())
    for part in (*_FLAGS, platform.machine(), _processor(), compiler or ""):
        digest.update(part.encode() + b"\0")
    return f"s2a_native_{digest.hexdigest()[:24]}.so"


def _processor() -> str:
    """What the compiler's "native" means here: the processor's model and features."""
    lines = set()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.partition(":")[0].strip() in ("flags", "Features", "CPU part",
                                                      "model name"):
                    lines.add(line.strip())
    except OSError:
        pass
    return "\n".join(sorted(lines))


def _build(cache: Path, compiler: str) -> NativeStatus:
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _ours(cache):
        return NativeStatus(None, f"{cache} belongs to, or can be written by, somebody else")
    path = cache / _file_name(compiler)
    said = ""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / "s2a_native.so"
        for tuning in _tunings():
            said = _compile([compiler, *_FLAGS, *tuning], made)
            if not said:
                made.chmod(0o700)
                made.replace(path)
                return NativeStatus(path, f"built with {compiler} {' '.join(tuning)}".rstrip())
    return NativeStatus(None, f"{compiler} refuses: {said}")


def _tunings() -> tuple[tuple[str, ...], ...]:
    """From the best for this machine to what every compiler takes."""
    if platform.machine() in ("x86_64", "AMD64"):
        return ("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ()
    return ("-mcpu=native",), ()


def _compile(command: list[str], out: Path) -> str:
    """Empty if it worked, else the compiler's first complaint."""
    here = Path(__file__).parent
    sources = [str(here / name) for name in _SOURCES]
    try:
        done = subprocess.run([*command, *sources, "-o", str(out), "-lm"], capture_output=True,
                              text=True, errors="replace", timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[:200]
    if done.returncode == 0 and out.exists():
        return ""
    lines = [line for line in done.stderr.splitlines() if "error" in line] or [
        f"exit {done.returncode}"]
    return lines[0][:200]


__all__ = ["NATIVE_DOMAIN", "NativeStatus", "find_library", "native_status"]
