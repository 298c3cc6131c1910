"""The board's side of every link: one request carried out, with all of s2a-edge at hand.

``python -m s2a_edge.link.agent ROOT`` reads one request on stdin and prints the answer, one JSON
object a line. A broken request is an answer, too; the exit status is 0 unless the process dies.
"""

from __future__ import annotations

import base64
import binascii
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_edge import __version__
from s2a_edge.link import bare_agent
from s2a_edge.link.bare_agent import hello
from s2a_edge.link.board_folder import require_own_folders
from s2a_edge.link.messages import (
    MAX_MESSAGE_BYTES,
    OnNote,
    Request,
    bad_request,
    decode,
    encode,
    failure,
    success,
)
from s2a_edge.link.offered import remember_offered
from s2a_edge.link.pulled_run import list_runs, offer_run
from s2a_edge.link.releases import Releases
from s2a_edge.link.rollback import roll_back
from s2a_edge.spec.errors import S2AError
from s2a_edge.spec.strict_json import plain

if TYPE_CHECKING:
    from s2a_edge.link.install import BoardChecks, Offer

# What installs is imported where it is used: most requests need none of it, and each request over
# ssh is a process of its own on a slow board.


def handle(root: Path, request: Request, on_note: OnNote, checks: BoardChecks | None = None) -> Any:
    """Carry out one request; see :func:`s2a_edge.link.bare_agent.handle`.

    Raises:
        S2AError: it was not carried out.
    """
    operation = request.get("op")
    require_own_folders(root)
    releases = Releases(root)
    if operation == "status":
        return status(releases)
    if operation == "offer":
        from s2a_edge.link.install import check_offer

        sums, signed_by = check_offer(releases, _offer(request))
        if signed_by is not None:
            remember_offered(root, sums.values())
        return {"files": len(sums), "signed_by": signed_by}
    if operation == "install":
        from s2a_edge.link.install import install

        with releases.lock(create=True):
            return asdict(install(releases, _offer(request), checks=checks, on_step=on_note))
    if operation == "rollback":
        with releases.lock():
            return asdict(roll_back(releases))
    if operation == "run":
        return offer_run(releases, str(request.get("name")), is_full=request.get("full") is True)
    return bare_agent.handle(root, request, on_note)


def status(releases: Releases) -> dict[str, Any]:
    """The board, its releases and its runs."""
    return {
        **hello(releases.root),
        "version": __version__,
        "current": releases.current(),
        "previous": releases.previous(),
        "releases": [{"hash": name, **plain(releases.mark(name))} for name in releases.names()],
        "runs": list_runs(releases),
    }


def answer(root: Path, request: Request, on_note: OnNote) -> Request:
    """:func:`handle`, with its error as an answer."""
    try:
        return success(handle(root, request, on_note))
    except S2AError as error:
        return failure(error)


def _offer(request: Request) -> Offer:
    from s2a_edge.link.install import Offer, Options

    sums, signature = _bytes(request.get("sums")), request.get("signature")
    given = request.get("options", {})
    if not isinstance(given, dict) or not all(type(v) is bool for v in given.values()):
        raise bad_request(f"options {given!a}")
    try:
        options = Options(**given)
    except TypeError as error:
        raise bad_request(str(error)) from error
    return Offer(sums, None if signature is None else _bytes(signature), options)


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "-", validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{value!a}") from error


def main(arguments: list[str]) -> int:
    """Serve one request."""
    out = sys.stdout.buffer

    def note(text: str) -> None:
        out.write(encode({"note": text}))
        out.flush()

    try:
        request = decode(sys.stdin.buffer.read(MAX_MESSAGE_BYTES + 1))
    except S2AError as error:
        out.write(encode(failure(error)))
        return 0
    out.write(encode(answer(Path(arguments[0]).expanduser(), request, note)))
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
