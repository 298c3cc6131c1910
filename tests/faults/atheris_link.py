"""Coverage-guided fuzzing of everything that reads bytes from a wire or a bundle.

``python atheris_link.py -runs=100000 [FOLDER]``: arguments are libFuzzer's. An exception other than
the ones that callers expect ends it.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # optional

with atheris.instrument_imports(include=["s2a_edge"]):
    from s2a_edge.link.channel import Channel
    from s2a_edge.link.framing import Deframer, NotAFrameError, decode_stuffed
    from s2a_edge.link.line import read_control
    from s2a_edge.link.messages import decode, result
    from s2a_edge.link.stream_messages import MessageReader, unpack_chunk
    from s2a_edge.link.target import parse_target
    from s2a_edge.link.tuned_state import read_header
    from s2a_edge.spec.bundle_files import read_listing
    from s2a_edge.spec.bundle_tar import read_members
    from s2a_edge.spec.checksums import parse_sums
    from s2a_edge.spec.errors import S2AError
    from s2a_edge.spec.trust import parse_public_key, parse_signatures


def frames(data: bytes) -> None:
    channel, reader = Channel(7), MessageReader()
    for content in Deframer().feed(data):
        read_control(content)
    if data:
        channel.receive(data, 0.0)
    for _ in reader.feed(data):
        pass


def stuffed(data: bytes) -> None:
    try:
        decode_stuffed(data)
    except NotAFrameError:
        return


TARGETS = (
    frames,
    stuffed,
    unpack_chunk,
    lambda data: result(decode(data)),
    parse_sums,
    parse_signatures,
    lambda data: parse_public_key(data.decode("latin-1"), "x"),
    lambda data: parse_target(data.decode("utf-8", "replace")),
    lambda data: read_header(io.BytesIO(data), Path("x")),
    lambda data: read_members(io.BytesIO(data), "x"),
    lambda data: read_listing(data[: len(data) // 2], data[len(data) // 2 :]),
)


def one_input(data: bytes) -> None:
    if data:
        try:
            TARGETS[data[0] % len(TARGETS)](data[1:])
        except S2AError as error:
            assert error.where


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
