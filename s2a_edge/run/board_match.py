"""Which device profile a board is, from what it says of itself.

Evidence is taken in order of strength; the first kind that names a module decides. A part number
that several modules share, and a kind of evidence that leaves several, is decided by ``MemTotal``:
a module's ``MemTotal`` is its capacity less a few percent. Weaker evidence that contradicts is
named in the reason, so that a person can see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from s2a_edge.spec.profile_facts import DeviceProfile
from s2a_edge.spec.units import format_bytes

# MemTotal / capacity was 0.93 to 0.97 in the logs behind the profiles; camera and secure
# carve-outs can take more.
_MIN_SHARE = 0.75
_HOST_PROFILE = "cpu-reference"
_PART = re.compile(r"p[0-9]{4}(?:-[0-9]{4})?")


@dataclass(frozen=True)
class Match:
    """A profile's name, or None, and why."""

    profile: str | None
    reason: str


def match_board(
    profiles: Sequence[DeviceProfile],
    *,
    tnspec: str | None,
    compatible: Sequence[str],
    model: str | None,
    mem_total_bytes: int | None,
) -> Match:
    """The profile that fits a board's own words best; never raises.

    Args:
        profiles: the known profiles.
        tnspec: ``3767-300-0005-N.2-1-1-jetson-orin-nano-devkit-``.
        compatible: ``("nvidia,p3768-0000+p3767-0005", "nvidia,tegra234")``.
        model: ``NVIDIA Jetson Orin Nano Developer Kit``.
        mem_total_bytes: ``MemTotal``.
    """
    jetsons = [profile for profile in profiles if profile.kind == "jetson"]
    named = _in_text(model, jetsons)
    evidence = (
        (f"TNSPEC {tnspec}", _by_parts(_tnspec_parts(tnspec), jetsons)),
        (f"compatible {' '.join(compatible)}", _by_parts(_tree_parts(compatible), jetsons)),
        (f"model {model!r}", named),
        (f"compatible {' '.join(compatible)}", _by_soc(compatible, jetsons)),
    )
    for source, candidates in evidence:
        if candidates:
            return _decide(source, candidates, named, model, mem_total_bytes)
    if tnspec or any("tegra" in entry for entry in compatible) or "jetson" in (model or "").lower():
        return Match(None, "a Jetson whose module no profile knows")
    names = [profile.name for profile in profiles if profile.name == _HOST_PROFILE]
    return Match(names[0] if names else None, "no sign of a Jetson: this host's CPU")


def _decide(
    source: str,
    candidates: Sequence[DeviceProfile],
    named: Sequence[DeviceProfile],
    model: str | None,
    mem_total_bytes: int | None,
) -> Match:
    """One of the candidates that one kind of evidence leaves, by MemTotal where needed."""
    fitting = [p for p in candidates if _memory_fits(p, mem_total_bytes)]
    names = ", ".join(profile.name for profile in candidates)
    if len(candidates) > 1 and len(fitting) != 1:
        seen = "unknown" if mem_total_bytes is None else format_bytes(mem_total_bytes)
        return Match(None, f"{source} fits {names}; MemTotal ({seen}) does not tell which")
    chosen = candidates[0] if len(candidates) == 1 else fitting[0]
    reason = source
    if mem_total_bytes is not None:
        if len(candidates) > 1:
            reason += f" fits {names}; MemTotal {format_bytes(mem_total_bytes)} decides"
        elif not fitting:
            reason += f"; MemTotal {format_bytes(mem_total_bytes)} is unusual for it"
    if named and chosen not in named:
        reason += f"; the model string {model!r} says otherwise and is weaker evidence"
    return Match(chosen.name, reason)


def _memory_fits(profile: DeviceProfile, mem_total_bytes: int | None) -> bool:
    capacity = profile.memory.capacity_bytes
    if capacity is None or mem_total_bytes is None:
        return False
    return _MIN_SHARE * capacity.value <= mem_total_bytes <= capacity.value


def _tnspec_parts(tnspec: str | None) -> set[str]:
    """``3767-300-0005-…`` -> ``{p3767-0005}``: module, then revision, then SKU.

    The SKU may be empty (``3448-300---1-0-…``) or, on old releases, stand before the revision.
    """
    words = (tnspec or "").split("-")
    if len(words) < 3 or not re.fullmatch("[0-9]{4}", words[0]):
        return set()
    skus = [word for word in words[1:3] if re.fullmatch("[0-9]{4}", word)]
    return {f"p{words[0]}-{sku}" for sku in skus[:1]}


def _tree_parts(compatible: Iterable[str]) -> set[str]:
    """``nvidia,p3768-0000+p3767-0005-super`` -> ``{p3768-0000, p3767-0005}``: carrier, module."""
    return {part for entry in compatible for part in _PART.findall(entry)}


def _by_parts(parts: set[str], profiles: Sequence[DeviceProfile]) -> list[DeviceProfile]:
    def lists_one(profile: DeviceProfile) -> bool:
        listed = profile.detection.parts
        return listed is not None and any(
            part == known or part.startswith(f"{known}-")
            for known in listed.value
            for part in parts
        )

    return _kept(profiles, lists_one)


def _in_text(model: str | None, profiles: Sequence[DeviceProfile]) -> list[DeviceProfile]:
    """The profiles whose longest name occurs in the model string: ``Nano 2GB`` before ``Nano``."""
    lengths = {}
    for profile in profiles:
        names = profile.detection.model_contains
        found = [n for n in names.value if n.lower() in model.lower()] if names and model else []
        if found:
            lengths[profile.name] = max(map(len, found))
    longest = max(lengths.values(), default=0)
    return _kept(profiles, lambda profile: longest > 0 and lengths.get(profile.name) == longest)


def _by_soc(compatible: Iterable[str], profiles: Sequence[DeviceProfile]) -> list[DeviceProfile]:
    socs = {entry.rpartition(",")[2] for entry in compatible}
    return _kept(
        profiles,
        lambda profile: profile.detection.soc is not None and profile.detection.soc.value in socs,
    )


def _kept(
    profiles: Sequence[DeviceProfile], condition: Callable[[DeviceProfile], bool]
) -> list[DeviceProfile]:
    return [profile for profile in profiles if condition(profile)]
