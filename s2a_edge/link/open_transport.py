"""The transport that a target means; each is imported when it is used."""

from __future__ import annotations

from s2a_edge.link.target import Target, local_folder, parse_target
from s2a_edge.link.transport import Transport


def open_transport(text: str, *, may_push: bool = True) -> Transport:
    """Open the way to a board.

    Args:
        text: a target.
        may_push: whether to log in to a bare board on a serial line and start a program there.

    Raises:
        UsageError: it is no target.
        LinkError: the board cannot be reached.
    """
    return _open(parse_target(text), may_push)


def _open(target: Target, may_push: bool) -> Transport:
    if target.kind == "usb":
        from s2a_edge.link.usb import resolve_usb

        target = resolve_usb(target)
    if target.kind == "ssh":
        from s2a_edge.link.ssh_transport import SshTransport

        return SshTransport(target)
    if target.kind == "serial":
        from s2a_edge.link.serial_transport import SerialTransport

        return SerialTransport(target, may_push=may_push)
    assert target.kind == "dir", target.kind
    from s2a_edge.link.dir_transport import DirTransport

    return DirTransport(local_folder(target.root))
