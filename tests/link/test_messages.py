from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.link.messages import decode, encode, failure, result, success
from s2a_edge.link.stream_messages import (
    CHUNK,
    CHUNK_BYTES,
    NOTE,
    REQUEST,
    MessageReader,
    pack_chunk,
    pack_message,
    unpack_chunk,
)
from s2a_edge.spec import errors
from s2a_edge.spec.errors import BudgetError, LinkError


def test_values_and_errors_cross() -> None:
    assert result(decode(encode(success({"a": [1, None]})))) == {"a": [1, None]}
    error = BudgetError(where="a", expected="b", got="c\nd", todo="e", missing_bytes=3)
    with pytest.raises(BudgetError, match="board: a: expected b, got c d; e"):
        result(decode(encode(failure(error))))


@pytest.mark.parametrize("name", ["Exception", "os", "S2AError", "annotations", "", None, 3])
def test_only_our_errors_are_raised(name: object) -> None:
    with pytest.raises(errors.S2AError):
        result({"ok": False, "error": {"error": name}})
    with pytest.raises(LinkError):
        result({"ok": 1, "error": name})


@given(st.binary(max_size=CHUNK_BYTES))
def test_chunks_come_back_and_do_not_grow(data: bytes) -> None:
    message = pack_chunk(data)
    assert len(message) <= len(data) + 6
    ((kind, payload),) = MessageReader().feed(message)
    assert (kind, unpack_chunk(payload)) == (CHUNK, data)


def test_what_unpacks_to_more_than_a_chunk_is_refused() -> None:
    bomb = b"\1" + zlib.compress(b"\0" * (CHUNK_BYTES + 1))
    for payload in (bomb, b"", b"\2x", b"\1x", b"\0" * (CHUNK_BYTES + 2), bomb[:-1]):
        with pytest.raises(LinkError):
            unpack_chunk(payload)


def test_lengths_are_bounded_before_anything_is_kept() -> None:
    for kind in (CHUNK, REQUEST, NOTE, 9):
        with pytest.raises(LinkError):
            list(MessageReader().feed(bytes([kind]) + (2**31).to_bytes(4, "little")))


@given(st.lists(st.binary(max_size=30), max_size=5), st.integers(1, 20))
def test_messages_come_out_of_a_stream_cut_anywhere(payloads: list[bytes], step: int) -> None:
    stream = b"".join(pack_message(NOTE, payload) for payload in payloads)
    reader = MessageReader()
    found = [m for i in range(0, len(stream), step) for m in reader.feed(stream[i : i + step])]
    assert found == [(NOTE, payload) for payload in payloads]
