"""Targets, as people type them, and the transports they mean.

``dir:/path``, ``ssh://[user@]host[:port]/path``, ``serial:/dev/ttyACM0[/path]``, ``usb:[path]``;
options follow as ``?name=value&name=value``. A path that begins with ``~/`` is below the home
folder of whom the board is used as.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from s2a_edge.spec.errors import UsageError

DEFAULT_ROOT = "~/s2a-edge"
_KINDS = ("dir", "ssh", "serial", "usb")
_SSH = re.compile(r"//(?:([^@/]+)@)?(\[[0-9A-Fa-f:.]+\]|[^:/@]+)(?::([0-9]{1,5}))?(/.*)?")
# What a shell would take for something else: a ProxyCommand of the user's may hold either name.
_NOT_A_NAME = re.compile(r"^-|[\s\0'\"`$\\;&|<>(){}]")
_OPTIONS = {
    "dir": (),
    "ssh": ("python",),
    "serial": ("baud", "base", "root", "user"),
    "usb": ("python", "baud", "user"),
}


@dataclass(frozen=True)
class Target:
    """A target taken apart.

    Attributes:
        text: as it was given.
        kind: ``dir``, ``ssh``, ``serial`` or ``usb``.
        user: for ssh; None: as ssh decides.
        host: for ssh; the device file for serial.
        port: for ssh; None: as ssh decides.
        root: the board's folder.
        options: what followed the question mark.
    """

    text: str
    kind: str
    user: str | None
    host: str
    port: int | None
    root: str
    options: dict[str, str]


def parse_target(text: str) -> Target:
    """Take a target apart.

    Raises:
        UsageError: it is none.
    """
    bare, _, query = text.partition("?")
    kind, colon, rest = bare.partition(":")
    if not colon or kind not in _KINDS or not text.isprintable():
        raise _refused(text, "a target: dir:/path, ssh://host/path, serial:/dev/tty or usb:")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(options.keys() - set(_OPTIONS[kind]))
    if unknown:
        known = ", ".join(_OPTIONS[kind]) or "none"
        raise _refused(text, f"for {kind}: the options {known}")
    if kind == "ssh":
        return _ssh(text, rest, options)
    if kind == "serial":
        if not rest.startswith("/"):
            raise _refused(text, "a device file, serial:/dev/ttyACM0")
        root = options.get("root", DEFAULT_ROOT)
        if not root.startswith(("/", "~/")):
            raise _refused(text, "root= with a path that begins with / or ~/")
        return Target(text, kind, None, rest, None, root, options)
    if kind == "dir" and not rest:
        raise _refused(text, "a folder, dir:/path")
    return Target(text, kind, None, "", None, rest or DEFAULT_ROOT, options)


def _ssh(text: str, rest: str, options: dict[str, str]) -> Target:
    match = _SSH.fullmatch(rest)
    if match is None:
        raise _refused(text, "ssh://[user@]host[:port]/path")
    user, host, port, path = match.groups()
    host = unquote(host).strip("[]")
    user = unquote(user) if user else None
    if _NOT_A_NAME.search(host) or _NOT_A_NAME.search(user or ""):
        raise _refused(text, "a host and a user of plain characters, no dash first")
    number = int(port) if port else None
    if number is not None and not 1 <= number <= 65_535:
        raise _refused(text, "a port from 1 to 65535")
    root = unquote(path or "")
    if root in ("", "/"):
        root = DEFAULT_ROOT
    # ssh://host/~/x is x below the home folder; ssh://host/x is /x.
    root = root.removeprefix("/") if root.startswith("/~/") else root
    return Target(text, "ssh", user, host, number, root, options)


def local_folder(root: str) -> Path:
    """A ``dir:`` target's folder, absolute.

    Raises:
        UsageError: it begins with ``~name``, and there is no such user.
    """
    try:
        return Path(root).expanduser().absolute()
    except RuntimeError as error:
        raise _refused(f"dir:{root}", "a folder, or ~ and a user of this machine") from error


def _refused(text: str, expected: str) -> UsageError:
    return UsageError(
        where=f"target {text[:100]!a}",
        expected=expected,
        got="something else",
        todo="`s2a-edge flash --help` has examples, `s2a-edge links` lists what is reachable",
    )
