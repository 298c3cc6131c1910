"""The TOML file of a device profile, read strictly.

A profile is data: identity, and sections of *facts*. Every fact carries where it comes from and
when it was taken; what is not known is absent. In the file::

    schema_version = 1
    name = "orin-nano-8gb"
    title = "NVIDIA Jetson Orin Nano 8GB"
    kind = "jetson"
    can_train = true
    can_train_reason = "..."

    [sources]
    tegrastats = { text = "public tegrastats logs", date = "2026-11-23" }

    [memory]
    mem_total = { value = "7620MiB", source = "tegrastats" }

Sizes are texts with their unit, so that a figure stands as it was reported (``0.8GB`` is not
``0.8GiB``). A fact may have a ``note``, and ``carried_over_from`` where it was observed on another
device and only assumed to hold here. Unknown keys, wrong types and missing sources are
:class:`DeviceError` with the file and the key's path.
"""

from __future__ import annotations

import datetime
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, cast

from s2a_edge.spec.errors import DeviceError, UsageError
from s2a_edge.spec.profile_facts import (
    CpuFacts,
    DetectionFacts,
    DeviceProfile,
    Fact,
    GpuFacts,
    MemoryFacts,
    OverheadFacts,
    PowerFacts,
    SoftwareFacts,
)
from s2a_edge.spec.units import parse_bytes

SCHEMA_VERSION = 1
KINDS = ("jetson", "board", "host")

_SECTIONS: dict[str, type[Any]] = {
    "memory": MemoryFacts,
    "overheads": OverheadFacts,
    "gpu": GpuFacts,
    "cpu": CpuFacts,
    "power": PowerFacts,
    "software": SoftwareFacts,
    "detection": DetectionFacts,
}
_IDENTITY: dict[str, type[Any]] = {
    "schema_version": int,
    "name": str,
    "title": str,
    "kind": str,
    "can_train": bool,
    "can_train_reason": str,
}
_SIZE_FORMS = {Fact[int]: "bytes", Fact[tuple[int, int]]: "bytes range"}
_FORMS = {
    Fact[int]: "integer",
    Fact[float]: "number",
    Fact[str]: "text",
    Fact[tuple[str, ...]]: "texts",
}
_TYPE_NAMES = {str: "a text", int: "an integer", bool: "true or false", dict: "a table"}


def read_profile(table: Mapping[str, object], *, file: str) -> DeviceProfile:
    """A parsed TOML document as a profile.

    Args:
        table: what ``tomllib`` returned.
        file: its name, for errors.

    Raises:
        DeviceError: a key is unknown, missing, of the wrong type, or a fact has no source.
    """
    _only_keys(table, (*_IDENTITY, "sources", *_SECTIONS), file, "")
    identity = {key: _typed(table, key, kind, file, "") for key, kind in _IDENTITY.items()}
    version = identity.pop("schema_version")
    if version != SCHEMA_VERSION:
        _refuse(file, "schema_version", str(SCHEMA_VERSION), str(version))
    if identity["kind"] not in KINDS:
        _refuse(file, "kind", " or ".join(KINDS), repr(identity["kind"]))
    sources = _read_sources(table, file)
    sections: dict[str, Any] = {}
    for name, cls in _SECTIONS.items():
        if name in table:
            section = _typed(table, name, dict, file, "")
            sections[name] = _read_section(cls, section, sources, file, name)
    return DeviceProfile(**identity, **sections)


def _read_sources(table: Mapping[str, object], file: str) -> dict[str, tuple[str, str]]:
    sources: dict[str, tuple[str, str]] = {}
    written = _typed(table, "sources", dict, file, "") if "sources" in table else {}
    for key in written:
        path = f"sources.{key}"
        entry = _typed(written, key, dict, file, "sources")
        _only_keys(entry, ("text", "date"), file, path)
        date = _typed(entry, "date", str, file, path)
        try:
            # Python 3.11 reads other ISO forms too; one form is enough.
            one_form = datetime.date.fromisoformat(date).isoformat() == date
        except ValueError:
            one_form = False
        if not one_form:
            _refuse(file, f"{path}.date", "a date such as 2026-01-31", repr(date))
        sources[key] = (_typed(entry, "text", str, file, path), date)
    return sources


def _forms(cls: type[Any]) -> dict[str, tuple[str, str]]:
    """Key in the file to (attribute, form): the hints of a section's class are its schema.

    Sizes are texts with a unit in the file, so their keys lack the attribute's ``_bytes``.
    """
    forms = {}
    for name, hint in typing.get_type_hints(cls).items():
        fact = typing.get_args(hint)[0]
        if name.endswith("_bytes"):
            key, form = name.removesuffix("_bytes"), _SIZE_FORMS[fact]
        else:
            key, form = name, _FORMS[fact]
        forms[key] = (name, form)
    return forms


def _read_section(
    cls: type[Any],
    table: Mapping[str, object],
    sources: Mapping[str, tuple[str, str]],
    file: str,
    path: str,
) -> Any:
    forms = _forms(cls)
    _only_keys(table, forms, file, path)
    facts = {}
    for key, (name, form) in forms.items():
        if key in table:
            fact = _typed(table, key, dict, file, path)
            facts[name] = _read_fact(fact, form, sources, file, f"{path}.{key}")
    return cls(**facts)


def _read_fact(
    table: Mapping[str, object],
    form: str,
    sources: Mapping[str, tuple[str, str]],
    file: str,
    path: str,
) -> Fact[Any]:
    _only_keys(table, ("value", "source", "note", "carried_over_from"), file, path)
    if "value" not in table:
        _refuse(file, f"{path}.value", "a value", "nothing")
    source = _typed(table, "source", str, file, path)
    if source not in sources:
        _refuse(file, f"{path}.source", f"one of [sources]: {', '.join(sources)}", repr(source))
    text, date = sources[source]
    extra = {
        key: _typed(table, key, str, file, path)
        for key in ("note", "carried_over_from")
        if key in table
    }
    value = _read_value(table["value"], form, file, f"{path}.value")
    return Fact(value=value, source=text, date=date, **extra)


def _read_value(value: object, form: str, file: str, path: str) -> Any:
    if form == "bytes":
        return _read_size(value, file, path)
    if form == "bytes range":
        if not isinstance(value, list) or len(value) != 2:
            _refuse(file, path, 'two sizes, ["0.3GB", "0.8GB"]', repr(value))
        low, high = (_read_size(item, file, path) for item in value)
        if low > high:
            _refuse(file, path, "the smaller size first", repr(value))
        return low, high
    if form == "texts":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            _refuse(file, path, "a list of texts", repr(value))
        return tuple(value)
    if form == "text":
        if not isinstance(value, str):
            _refuse(file, path, "a text", repr(value))
        return value
    whole = type(value) is int  # bool is an int to isinstance
    if not whole and not (form == "number" and type(value) is float):
        _refuse(file, path, "an integer" if form == "integer" else "a number", repr(value))
    number = cast(float, value)
    # "not >" also refuses TOML's nan.
    if not 0 < number < float("inf"):
        _refuse(file, path, "a positive number", repr(value))
    return value if form == "integer" else float(number)


def _read_size(value: object, file: str, path: str) -> int:
    if not isinstance(value, str):
        _refuse(file, path, 'a size with its unit, "7620MiB"', repr(value))
    try:
        return parse_bytes(value, where=f"{file}: {path}")
    except UsageError as error:
        _refuse(file, path, error.expected, error.got)


def _typed(table: Mapping[str, Any], key: str, kind: type[Any], file: str, path: str) -> Any:
    """``table[key]``, which must exist and be of this type; texts must not be empty."""
    full = f"{path}.{key}" if path else key
    if key not in table:
        _refuse(file, full, _TYPE_NAMES[kind], "nothing")
    value = table[key]
    if type(value) is not kind or value == "":
        _refuse(file, full, _TYPE_NAMES[kind], repr(value))
    return value


def _only_keys(table: Mapping[str, object], known: Iterable[str], file: str, path: str) -> None:
    known = list(known)
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            full = f"{path}.{key}" if path else key
            _refuse(file, full, f"one of the keys {', '.join(known)}", f"an unknown key{hint}")


def _refuse(file: str, path: str, expected: str, got: str) -> NoReturn:
    raise DeviceError(
        where=f"{file}: {path}", expected=expected, got=got, todo="correct the profile"
    )
