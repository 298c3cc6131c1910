"""JSON to frozen dataclasses and back, refusing everything that a class does not declare.

The schema is the class: field names are the keys, type hints are the types, and bounds stand in
``Annotated``::

    @dataclass(frozen=True)
    class Trainable:
        name: Annotated[str, Length(1, 1024)]
        shape: Annotated[tuple[Annotated[int, Span(1, 2**31)], ...], Length(0, 8)]

Understood hints: ``str int float bool``, ``Literal``, ``Enum`` of strings, ``X | None``, unions of
dataclasses that a ``kind: Literal`` tells apart, ``X | Literal["text"]``, ``tuple[X, ...]``,
``tuple[X, Y]``, ``dict[str, X]`` and dataclasses. Every key must be there (``null`` where the hint
says so) unless its field has a default, no other may be: a field that a later version adds has a
default, so that older files can still be read. Errors are :class:`BundleError` and name the place:
``manifest.json: trainables[3].shape``.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, cast

from s2a_edge.spec.errors import BundleError

_MAX_NUMBER_CHARS = 40  # no field needs more; int() is quadratic in the length of its text
_MAX_SHOWN_CHARS = 60
_TODO = "the file is damaged or was written by another version of s2a-edge; pack it again"

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """A number between ``low`` and ``high``, both included."""

    low: float
    high: float

    def refusal(self, value: Any) -> str | None:
        """What was expected, or None if ``value`` is right."""
        if self.low <= value <= self.high:
            return None
        return f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Length:
    """A text, list or object of ``low`` to ``high`` characters or entries."""

    low: int
    high: int

    def refusal(self, value: Any) -> str | None:
        """What was expected, or None if ``value`` is right."""
        if self.low <= len(value) <= self.high:
            return None
        return f"{self.low} to {self.high} characters or entries"


@dataclass(frozen=True)
class Matches:
    """A text that a regular expression matches completely; ``meaning`` says it in words."""

    pattern: str
    meaning: str

    def refusal(self, value: Any) -> str | None:
        """What was expected, or None if ``value`` is right."""
        return None if re.fullmatch(self.pattern, value) else self.meaning


def parse(text: str, *, where: str) -> object:
    """JSON text to plain values; refuses repeated keys, NaN, huge numbers and deep nesting.

    Raises:
        BundleError: ``text`` is not such JSON.
    """

    def number(convert: type[int] | type[float]) -> Callable[[str], Any]:
        def read_number(digits: str) -> Any:
            if len(digits) > _MAX_NUMBER_CHARS:
                refuse(where, "numbers of sane length", f"one of {len(digits)} characters")
            return convert(digits)

        return read_number

    def constant(name: str) -> NoReturn:
        refuse(where, "finite numbers", name)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            refuse(where, "every key once", f"{_shown(repeated)} twice in one object")
        return result

    try:
        return cast(
            object,
            json.loads(
                text,
                object_pairs_hook=unique,
                parse_int=number(int),
                parse_float=number(float),
                parse_constant=constant,
            ),
        )
    except json.JSONDecodeError as error:
        refuse(where, "JSON", f"{error.msg} (line {error.lineno}, column {error.colno})")
    except RecursionError:
        refuse(where, "JSON of a few levels", "lists or objects nested too deeply")


def read(cls: type[T], value: object, *, file: str, path: str = "") -> T:
    """A plain JSON value as an instance of the dataclass ``cls``.

    Args:
        cls: a frozen dataclass whose hints are the schema.
        value: what :func:`parse` returned.
        file: name for error messages, ``manifest.json``.
        path: place inside the file, for error messages.

    Raises:
        BundleError: a key is unknown or missing, or a value has the wrong type or range.
    """
    return cast(T, _read(cls, value, file, path))


def plain(value: object) -> Any:
    """A dataclass as plain JSON values: the inverse of :func:`read`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    return value


def refuse(where: str, expected: str, got: str, todo: str = _TODO) -> NoReturn:
    """Raise the :class:`BundleError` of a value that is not as declared."""
    raise BundleError(where=where, expected=expected, got=got, todo=todo)


def _shown(value: object) -> str:
    """A value from a file, short and on one line."""
    text = ascii(value) if isinstance(value, (str, int, float)) or value is None else ""
    if not text:
        return f"{type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."


def _place(file: str, path: str) -> str:
    return f"{file}: {path}" if path else file


def _read(hint: Any, value: Any, file: str, path: str) -> Any:
    """``value`` as ``hint`` says; the one place that knows which hints exist."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        inner, *bounds = typing.get_args(hint)
        result = _read(inner, value, file, path)
        for bound in bounds:
            expected = bound.refusal(result)
            if expected is not None:
                refuse(_place(file, path), expected, _measured(result, bound))
        return result
    if origin in (Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None:
            return None
        return _read(options[0] if len(options) == 1 else _chosen(options, value, file, path),
                     value, file, path)
    if origin is Literal:
        return _read_choice(typing.get_args(hint), value, file, path)
    if origin is tuple:
        return _read_list(typing.get_args(hint), value, file, path)
    if origin is dict:
        return _read_map(typing.get_args(hint), value, file, path)
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(cast(type[Any], hint), value, file, path)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(_read_choice(tuple(m.value for m in hint), value, file, path))
    return _read_scalar(hint, value, file, path)


def _chosen(options: list[Any], value: Any, file: str, path: str) -> Any:
    """The dataclass of a union whose ``kind`` the object has.

    A union with a ``Literal`` has its texts, and the other type where no text stands.
    """
    literals = [option for option in options if typing.get_origin(option) is Literal]
    if literals:
        others = [option for option in options if option not in literals]
        return literals[0] if type(value) is str else others[0]
    by_kind = {kind: option for option in options for kind in typing.get_args(
        _hints(option)["kind"])}
    expected = f"an object of a kind among {', '.join(by_kind)}"
    if type(value) is not dict:
        refuse(_place(file, path), expected, _shown(value))
    if "kind" not in value:
        refuse(_place(file, path), expected, "no key kind")
    kind = value["kind"]
    if type(kind) is not str or kind not in by_kind:
        refuse(_place(file, f"{path}.kind"), expected, _shown(kind))
    return by_kind[kind]


def _measured(value: Any, bound: object) -> str:
    return str(len(value)) if isinstance(bound, Length) else _shown(value)


def _read_choice(choices: tuple[Any, ...], value: Any, file: str, path: str) -> Any:
    # 1 == True == 1.0 in Python; the type must agree too.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        expected = "one of " + ", ".join(map(str, choices)) if len(choices) > 1 else str(choices[0])
        refuse(_place(file, path), expected, _shown(value))
    return value


def _read_list(hints: tuple[Any, ...], value: Any, file: str, path: str) -> tuple[Any, ...]:
    if type(value) is not list:
        refuse(_place(file, path), "a list", _shown(value))
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        refuse(_place(file, path), f"{len(hints)} entries", str(len(value)))
    return tuple(
        _read(hint, item, file, f"{path}[{i}]")
        for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _read_map(hints: tuple[Any, ...], value: Any, file: str, path: str) -> dict[Any, Any]:
    if type(value) is not dict:
        refuse(_place(file, path), "an object", _shown(value))
    key_hint, item_hint = hints
    return {
        _read(key_hint, key, file, f"{path} key {_shown(key)}"): _read(
            item_hint, item, file, f"{path}.{key[:_MAX_SHOWN_CHARS]}"
        )
        for key, item in value.items()
    }


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _read_dataclass(cls: type[Any], value: Any, file: str, path: str) -> Any:
    if type(value) is not dict:
        refuse(_place(file, path), "an object", _shown(value))
    hints = _hints(cast(Hashable, cls))  # mypy does not know that classes are hashable
    unknown, missing = value.keys() - hints.keys(), _required(cls) - value.keys()
    if unknown:
        got = f"unknown key {_shown(min(unknown))}"
        refuse(_place(file, path), f"only the keys {', '.join(hints)}", got)
    if missing:
        got = f"no key {', '.join(sorted(missing))}"
        refuse(_place(file, path), f"all the keys {', '.join(hints)}", got)
    prefix = f"{path}." if path else ""
    return cls(**{key: _read(hints[key], item, file, prefix + key) for key, item in value.items()})


def _required(cls: type[Any]) -> set[str]:
    missing = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is missing and field.default_factory is missing
    }


def _read_scalar(hint: Any, value: Any, file: str, path: str) -> Any:
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            refuse(_place(file, path), "a finite number", _shown(value))
        return float(value)
    names = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}
    assert hint in names, f"no reader for {hint}"
    if type(value) is not hint:
        refuse(_place(file, path), names[hint], _shown(value))
    if hint is str and not value.isprintable():
        # Control characters and lone surrogates reach terminals, logs and file names.
        refuse(_place(file, path), "printable characters", _shown(value))
    return value
