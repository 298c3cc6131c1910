"""``flash``: bring a bundle to a board, and have it installed there.

Nothing is sent before the board has looked at the signature and said what it lacks; what arrived
before an interruption is not sent again.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s2a_edge.link.blobs import Blob
from s2a_edge.link.install import Options
from s2a_edge.link.messages import Request
from s2a_edge.link.transport import Outgoing, Transport
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.checksums import parse_sums
from s2a_edge.spec.errors import BundleIntegrityError, LinkError, SignatureError

_ROUNDS = 2  # a blob that the board finds damaged is sent once more


@dataclass(frozen=True)
class Flashing:
    """Where a flash stands.

    Attributes:
        phase: ``sending``, or what the board is doing.
        done_bytes: of ``total_bytes``, while sending.
        total_bytes: what has to be sent.
        there_bytes: what the board had already.
        estimate_s: how long sending will take; None where nobody knows before trying.
    """

    phase: str
    done_bytes: int = 0
    total_bytes: int = 0
    there_bytes: int = 0
    estimate_s: float | None = None


@dataclass(frozen=True)
class Flashed:
    """What a flash did.

    Attributes:
        release: hash of the release that is in use on the board now.
        previous: hash of the one to roll back to.
        switched: whether it was not in use before.
        sent_bytes: payload that was sent.
        there_bytes: what the board had already.
        step_ms: duration of the step that the board rehearsed; None where it did not.
        signed_by: id of the key that the board trusts; None where it trusts anybody.
    """

    release: str
    previous: str | None
    switched: bool
    sent_bytes: int
    there_bytes: int
    step_ms: float | None
    signed_by: str | None


OnFlashing = Callable[[Flashing], None]


def flash(
    bundle: Bundle,
    transport: Transport,
    *,
    options: Options | None = None,
    runtime: bytes | None = None,
    on_progress: OnFlashing = lambda now: None,
) -> Flashed:
    """Put an open bundle on a board, and use it there.

    Args:
        bundle: verified on this host.
        transport: the way to the board.
        options: of the install.
        runtime: zip of the board's package, to be unpacked and used there first.
        on_progress: told where it stands.

    Raises:
        LinkError: the board cannot be reached, or the way broke; flash again to go on.
        S2AError: the board's reason not to take the bundle; what is in use there is unchanged.
    """
    transport.notify = _note(on_progress)
    if runtime is not None:
        _require_free_board(transport, on_progress)
        _send_runtime(runtime, transport, on_progress)
    request = _request(bundle, options or Options())
    transport.call({**request, "op": "offer"}, _note(on_progress))
    files = _files(bundle)
    sent_bytes = there_bytes = 0
    for round_number in range(1, _ROUNDS + 1):
        sent, there_bytes = send_missing(files, transport, on_progress)
        sent_bytes += sent
        try:
            done = transport.call({**request, "op": "install"}, _note(on_progress))
            break
        except BundleIntegrityError:
            if round_number == _ROUNDS:
                raise
    return _flashed(done, bundle, sent_bytes, there_bytes)


def send_missing(
    files: dict[Blob, Path], transport: Transport, on_progress: OnFlashing
) -> tuple[int, int]:
    """Send what the board lacks of ``files``, and have it taken in.

    Returns:
        Bytes sent, and bytes that were there.

    Raises:
        LinkError: the way broke.
        S2AError: the board's error.
    """
    asked = [[blob.sha256, blob.size_bytes] for blob in files]
    held = _held(transport.call({"op": "held", "blobs": asked}, _note(on_progress)), files)
    missing = [
        Outgoing(blob, path, held[blob])
        for blob, path in files.items()
        if held[blob] < blob.size_bytes
    ]
    there_bytes = sum(held.values())
    total_bytes = sum(blob.size_bytes for blob in files) - there_bytes
    rate = transport.bytes_per_s()
    estimate_s = total_bytes / rate if rate else None
    done_bytes = 0

    def sent(more_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += more_bytes
        on_progress(Flashing("sending", done_bytes, total_bytes, there_bytes, estimate_s))

    sent(0)
    if missing:
        transport.send(missing, sent)
    transport.call({"op": "admit", "blobs": asked}, _note(on_progress))
    return total_bytes, there_bytes


def _files(bundle: Bundle) -> dict[Blob, Path]:
    """The bundle's files by content, small ones first; the same content once."""
    paths = {name: bundle.path / name for name in parse_sums(bundle.sums)}
    sums = parse_sums(bundle.sums)
    found = {Blob(sums[name], path.stat().st_size): path for name, path in paths.items()}
    return dict(sorted(found.items(), key=lambda item: item[0].size_bytes))


def _request(bundle: Bundle, options: Options) -> Request:
    signature = None if bundle.signature is None else base64.b64encode(bundle.signature).decode()
    return {
        "sums": base64.b64encode(bundle.sums).decode(),
        "signature": signature,
        "options": asdict(options),
    }


def _held(answer: Any, files: dict[Blob, Path]) -> dict[Blob, int]:
    """What the board says that it has, if that can be."""
    try:
        held = {blob: int(answer[blob.sha256]) for blob in files}
        if all(0 <= size <= blob.size_bytes for blob, size in held.items()):
            return held
    except (TypeError, KeyError, ValueError):
        pass
    raise LinkError(
        where="board",
        expected="how much of each file is there",
        got=ascii(answer)[:80],
        todo="use the same version of s2a-edge on both sides",
    )


def _require_free_board(transport: Transport, on_progress: OnFlashing) -> None:
    """A board with trusted keys takes no code; better said before any is sent."""
    found = transport.call({"op": "hello"}, _note(on_progress))
    if isinstance(found, dict) and found.get("has_trust"):
        raise SignatureError(
            where="--with-runtime",
            expected="a board that takes bundles from anybody",
            got="one with trusted keys",
            todo="install the package on the board yourself, then flash without --with-runtime",
        )


def _send_runtime(content: bytes, transport: Transport, on_progress: OnFlashing) -> None:
    blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
    with tempfile.NamedTemporaryFile(prefix="s2a-runtime-") as file:
        file.write(content)
        file.flush()
        send_missing({blob: Path(file.name)}, transport, on_progress)
    request: Request = {"op": "runtime", "blob": [blob.sha256, blob.size_bytes]}
    transport.call(request, _note(on_progress))


def _note(on_progress: OnFlashing) -> Callable[[str], None]:
    return lambda text: on_progress(Flashing(text))


def _flashed(done: Any, bundle: Bundle, sent_bytes: int, there_bytes: int) -> Flashed:
    if not isinstance(done, dict) or done.get("release") != bundle.hash:
        raise LinkError(
            where="board",
            expected=f"release {bundle.hash[:12]}",
            got=ascii(done)[:80],
            todo="flash again",
        )
    return Flashed(
        release=bundle.hash,
        previous=done.get("previous"),
        switched=bool(done.get("switched")),
        sent_bytes=sent_bytes,
        there_bytes=there_bytes,
        step_ms=done.get("step_ms"),
        signed_by=done.get("signed_by"),
    )
