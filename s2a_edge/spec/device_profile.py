"""Device profiles by name, and the memory that a device leaves for training.

A profile is one TOML file in ``device_profiles/`` (inside the package once installed, at the top
of a checkout otherwise) or any file that a user writes in the same form; ``profile_toml``
documents it.

The **training budget** is what a process that trains may hold, mapped weights included:

- of a module known by its profile alone: ``MemTotal - reserve - overhead``, where *reserve* is what
  the idle system uses (headless, or with a desktop) and *overhead* is the high end of what CUDA's
  context and libraries take (or, where only that was reported, a whole ONNX Runtime CUDA session);
  no overhead when training on the CPU;
- on the device itself: ``available - overhead``, since the kernel's ``MemAvailable`` already
  leaves the system out. It is not reduced further: the runtime watches it while it trains;
- of ``cpu-reference``, which stands for whatever host this is: the host's available memory.

A board's own values always win over a profile's typical ones.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.profile_facts import DeviceProfile, Fact
from s2a_edge.spec.profile_toml import read_profile

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, as a package
    import tomli as tomllib

Provider = Literal["cpu", "cuda"]

_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = (_PACKAGE / "device_profiles", _PACKAGE.parent / "device_profiles")
_MAX_FILE_BYTES = 1 << 20  # a profile is a page; anything larger is another kind of file


@dataclass(frozen=True)
class BudgetLine:
    """One term of a training budget.

    Attributes:
        label: what it is.
        size_bytes: what it adds; negative where it is taken away.
        source: where the figure comes from.
    """

    label: str
    size_bytes: int
    source: str


@dataclass(frozen=True)
class TrainingBudget:
    """The memory that a device leaves for training.

    Attributes:
        budget_bytes: the sum of the lines. Zero or below: the system and CUDA alone need more than
            the device has.
        lines: how it comes about.
    """

    budget_bytes: int
    lines: tuple[BudgetLine, ...]


def profiles_folder() -> Path:
    """The folder of the shipped profiles.

    Raises:
        DeviceError: it is missing from the installation.
    """
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise DeviceError(
        where=str(_FOLDERS[0]),
        expected="the folder of device profiles",
        got="nothing",
        todo="reinstall s2a-edge",
    )


def profile_names() -> tuple[str, ...]:
    """Names of the shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in profiles_folder().glob("*.toml")))


def list_profiles() -> tuple[DeviceProfile, ...]:
    """All shipped profiles, by name.

    Raises:
        DeviceError: one of them is malformed.
    """
    return tuple(load_profile(name) for name in profile_names())


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """A shipped profile by name, or one from a ``.toml`` file.

    Args:
        name_or_path: ``orin-nano-8gb``; or a path: a ``Path``, or a text that ends in ``.toml`` or
            has a directory in it.

    Raises:
        DeviceError: there is none of that name (the closest are named), or the file is malformed.
    """
    given = Path(name_or_path)
    if isinstance(name_or_path, Path) or given.suffix == ".toml" or given.name != name_or_path:
        return _load_file(given)
    names = profile_names()
    if name_or_path not in names:
        close = difflib.get_close_matches(name_or_path.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise DeviceError(
            where=f"device {name_or_path!r}",
            expected="the name of a device profile",
            got="an unknown name",
            todo=f"{hint}`s2a-edge devices list` shows all, a .toml file of yours works too",
        )
    return _load_file(profiles_folder() / f"{name_or_path}.toml")


def _load_file(path: Path) -> DeviceProfile:
    todo = "name a profile (`s2a-edge devices list`) or a readable .toml file"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DeviceError(
            where=str(path), expected="a device profile", got=error.strerror or "no file", todo=todo
        ) from error
    if len(content) > _MAX_FILE_BYTES:
        raise DeviceError(
            where=str(path), expected="a device profile", got="a file above 1 MiB", todo=todo
        )
    try:
        table = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DeviceError(
            where=str(path), expected="TOML", got=str(error), todo="correct the profile"
        ) from error
    return read_profile(table, file=path.name)


def training_budget(
    profile: DeviceProfile,
    *,
    mem_total_bytes: int | None = None,
    available_bytes: int | None = None,
    desktop: bool = False,
    provider: Provider | None = None,
) -> TrainingBudget:
    """What ``profile``'s device leaves for training; the module's docstring has the rule.

    Args:
        profile: the device.
        mem_total_bytes: the board's own ``MemTotal``, where it was read there.
        available_bytes: memory available on the device right now, where it was read there.
        desktop: a desktop session runs beside the training.
        provider: what executes the step; default ``cuda`` where the profile has a GPU.

    Raises:
        DeviceError: the profile does not know what the budget would have to be derived from.
    """
    memory = profile.memory
    lines: list[BudgetLine] = []
    if available_bytes is not None:
        lines.append(BudgetLine("memory available now", available_bytes, "read on this device"))
    elif profile.kind == "host":
        raise _unknown(profile, "memory available on the host", "it is read where training runs")
    else:
        if mem_total_bytes is not None:
            lines.append(BudgetLine("MemTotal", mem_total_bytes, "read on this device"))
        elif memory.mem_total_bytes is None:
            raise _unknown(profile, "a typical MemTotal", "none is known for this module")
        else:
            lines.append(_line("MemTotal, typical", memory.mem_total_bytes, 1))
        if memory.reserve_headless_bytes is None:
            raise _unknown(profile, "what the idle system uses", "it is not known for this module")
        lines.append(_line("idle system", memory.reserve_headless_bytes, -1))
        if desktop:
            if memory.desktop_extra_bytes is None:
                raise _unknown(profile, "what a desktop uses", "it is not known for this module")
            lines.append(_line("desktop session", memory.desktop_extra_bytes, -1))
    if (provider or ("cuda" if profile.gpu.sm else "cpu")) == "cuda":
        lines.append(_overhead(profile))
    return TrainingBudget(sum(line.size_bytes for line in lines), tuple(lines))


def _overhead(profile: DeviceProfile) -> BudgetLine:
    """What CUDA takes, at the high end of the reports."""
    overheads = profile.overheads
    if overheads.cuda_context_bytes is not None:
        label, fact = "CUDA context and libraries", overheads.cuda_context_bytes
    elif overheads.ort_cuda_session_bytes is not None:
        label, fact = "ONNX Runtime CUDA session", overheads.ort_cuda_session_bytes
    else:
        raise _unknown(profile, "what CUDA takes", "it is not known for this device")
    low, high = fact.value
    note = f"reported from {low} to {high} bytes; the high end counts"
    return BudgetLine(label, -high, f"{_provenance(fact)}; {note}")


def _line(label: str, fact: Fact[int], sign: int) -> BudgetLine:
    return BudgetLine(label, sign * fact.value, _provenance(fact))


def _provenance(fact: Fact[int] | Fact[tuple[int, int]]) -> str:
    carried = f", carried over from {fact.carried_over_from}" if fact.carried_over_from else ""
    return f"{fact.source}, {fact.date}{carried}"


def _unknown(profile: DeviceProfile, expected: str, got: str) -> DeviceError:
    return DeviceError(
        where=f"device {profile.name}",
        expected=expected,
        got=got,
        todo="give the budget yourself, --budget 600MiB, or run on the board with --this-device",
    )
