from __future__ import annotations

from cobs import cobs  # type: ignore[import-untyped]  # it ships no type information
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.link.framing import (
    MAX_FRAME_BYTES,
    Deframer,
    NotAFrameError,
    decode_frame,
    decode_stuffed,
    encode_frame,
    encode_stuffed,
)

# Runs around 254 bytes without a zero are where COBS has its cases.
RUNS = st.lists(st.integers(0, 520).map(lambda n: b"x" * n), max_size=4).map(b"\0".join)
CONTENTS = st.one_of(st.binary(max_size=600), RUNS)


@given(CONTENTS)
def test_our_stuffing_is_the_librarys(data: bytes) -> None:
    stuffed = encode_stuffed(data)
    assert 0 not in stuffed
    assert len(stuffed) <= len(data) + len(data) // 254 + 1
    assert stuffed == cobs.encode(data)
    assert decode_stuffed(stuffed) == cobs.decode(stuffed) == data


@given(st.binary(max_size=300))
def test_our_reader_refuses_what_the_library_refuses(stuffed: bytes) -> None:
    try:
        expected = cobs.decode(stuffed)
    except cobs.DecodeError:
        expected = None
    try:
        found = decode_stuffed(stuffed)
    except NotAFrameError:
        found = None
    assert found == expected


@given(st.lists(CONTENTS.filter(bool), max_size=5), st.integers(1, 50))
def test_frames_come_out_of_a_stream_cut_anywhere(contents: list[bytes], step: int) -> None:
    stream = b"login: " + b"".join(map(encode_frame, contents)) + b"[ 1.5] usb 1-1: reset\r\n"
    deframer = Deframer()
    found = [c for i in range(0, len(stream), step) for c in deframer.feed(stream[i : i + step])]
    assert found == contents


@given(CONTENTS.filter(bool), st.data())
def test_one_damaged_bit_is_noticed(content: bytes, data: st.DataObject) -> None:
    frame = bytearray(encode_frame(content)[1:-1])
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert decode_frame(bytes(frame)) != content
        raise AssertionError("a damaged frame was taken")
    except NotAFrameError as error:
        assert str(error)


def test_noise_without_end_is_not_kept() -> None:
    deframer = Deframer()
    for _ in range(1000):
        assert list(deframer.feed(b"noise" * 1000)) == []
    assert len(deframer._begun) <= MAX_FRAME_BYTES
    assert list(deframer.feed(b"\0" + encode_frame(b"x"))) == [b"x"]
    assert deframer.damaged == 1
