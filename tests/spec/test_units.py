"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.units import GIB, KIB, MIB, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("600MiB", 600 * 2**20),
        ("640MB", 640_000_000),
        ("1.5GiB", 1536 * 2**20),
        (" 1.5 gib ", 1536 * 2**20),
        ("0.8 GB", 800_000_000),
        ("4096", 4096),
        (4096, 4096),
        ("0", 0),
        ("1TiB", 2**40),
        ("1kB", 1000),
        ("1.9999B", 1),
    ],
)
def test_sizes_are_read(text: str | int, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MiB",
        "600M",
        "2G",
        "-5MiB",
        "1e9",
        "1,5GiB",
        "6 0 MiB",
        "nan",
        "0x10",
        "9" * 60,
        "10000000TB",
    ],
)
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text, where="--budget")
    assert caught.value.where == "--budget"
    assert "600MiB" in str(caught.value)


def test_true_is_no_size() -> None:
    with pytest.raises(UsageError):
        parse_bytes(True)


def test_a_negative_integer_is_no_size() -> None:
    with pytest.raises(UsageError):
        parse_bytes(-1)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (600 * MIB, "600.0 MiB"),
        (1536 * MIB, "1.50 GiB"),
        (-5 * MIB, "-5.0 MiB"),
    ],
)
def test_sizes_are_written(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@given(st.integers(0, 2**50))
def test_writing_and_reading_agree_to_the_last_digit_shown(size_bytes: int) -> None:
    half_digit = 0 if size_bytes < KIB else 0.05 * (KIB if size_bytes < MIB else MIB)
    if size_bytes >= GIB:
        half_digit = 0.005 * GIB
    assert abs(parse_bytes(format_bytes(size_bytes)) - size_bytes) <= half_digit + 1


@given(st.integers(0, 2**62))
def test_plain_integers_are_bytes(size_bytes: int) -> None:
    assert parse_bytes(str(size_bytes)) == parse_bytes(size_bytes) == size_bytes
