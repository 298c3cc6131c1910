"""Requests to a board and its answers, as plain JSON values.

A request is ``{"op": NAME, ...}``. An answer is any number of ``{"note": TEXT}`` and then
``{"ok": true, "value": ...}`` or ``{"ok": false, "error": {...}}`` with the fields of
:meth:`s2a_edge.spec.errors.S2AError.as_dict`.

Standard library only: a board without s2a-edge speaks this, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from s2a_edge.spec import errors
from s2a_edge.spec.errors import LinkError, S2AError

MAX_MESSAGE_BYTES = 2**22
OnNote = Callable[[str], None]
Request = dict[str, Any]
_SHOWN_CHARS = 500


def encode(value: Request) -> bytes:
    """A message as one line of JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(content: bytes) -> Request:
    """One message.

    Raises:
        LinkError: it is no JSON object.
    """
    try:
        value = json.loads(content) if len(content) <= MAX_MESSAGE_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LinkError(
            where="message",
            expected="a JSON object",
            got=ascii(content[:60]),
            todo="use the same version of s2a-edge on both sides",
        )
    return value


def success(value: object) -> Request:
    """The answer of a request that was carried out."""
    return {"ok": True, "value": value}


def failure(error: S2AError) -> Request:
    """The answer of a request that was not."""
    return {"ok": False, "error": error.as_dict()}


def result(answer: Request) -> Any:
    """The value of an answer.

    Raises:
        S2AError: the board's error, as the class that it has there.
    """
    if answer.get("ok") is True:
        return answer.get("value")
    raised = answer.get("error")
    fields = raised if isinstance(raised, dict) else {}
    texts = {
        key: " ".join(str(fields.get(key, "?"))[:_SHOWN_CHARS].split())
        for key in ("where", "expected", "got", "todo")
    }
    named = getattr(errors, str(fields.get("error")), LinkError)
    is_ours = isinstance(named, type) and issubclass(named, S2AError)
    made: S2AError = (named if is_ours else LinkError)(
        **{**texts, "where": f"board: {texts['where']}"}
    )
    raise made


def bad_request(got: str) -> LinkError:
    """The error of a request that this side does not understand."""
    return LinkError(
        where="request",
        expected="one that this version of s2a-edge knows",
        got=ascii(got[:80]),
        todo="use the same version of s2a-edge on both sides",
    )
