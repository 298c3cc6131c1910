"""The transport that a target means; each is imported when it is used."""

from __future__ import annotations

from s2a_edge.link.target import Target, local_folder, parse_target
from s2a_edge.link.transport import Transport
from s2a_edge.spec.errors import UsageError


def open_transport(text: str) -> Transport:
    """Open the way to a board.

    Raises:
        UsageError: it is no target.
        LinkError: the board cannot be reached.
    """
    return _open(parse_target(text))


def _open(target: Target) -> Transport:
    if target.kind == "dir":
        from s2a_edge.link.dir_transport import DirTransport

        return DirTransport(local_folder(target.root))
    if target.kind == "ssh":
        from s2a_edge.link.ssh_transport import SshTransport

        return SshTransport(target)
    if target.kind == "serial":
        from s2a_edge.link.serial_transport import SerialTransport

        return SerialTransport(target)
    raise UsageError(
        where=f"target {target.text!a}",
        expected="a target that this version can use",
        got=target.kind,
        todo="use dir:, ssh: or serial:",
    )
