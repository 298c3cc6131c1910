"""Compiling: once, privately, and never as a reason to fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2a_edge.native import library
from s2a_edge.native.library import find_library, native_status

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache of its own, and nothing remembered."""
    monkeypatch.setenv("S2A_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("S2A_EDGE_NATIVE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    library._status.cache_clear()
    yield tmp_path / "cache" / "native"
    library._status.cache_clear()


@needs_compiler
def test_it_is_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native_status(build=False).reason == "not built yet"
    first = find_library()
    assert first is not None and first.parent == fresh
    assert [path.name for path in fresh.iterdir()] == [first.name]  # nothing half-made is left
    assert first.stat().st_mode & 0o077 == 0
    library._status.cache_clear()
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiled again"))
    assert find_library() == first
    library._status.cache_clear()
    assert find_library(build=False) == first


@needs_compiler
def test_another_processor_or_source_is_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    name = library._file_name("/usr/bin/cc")
    monkeypatch.setattr(library, "_processor", lambda: "something else")
    assert library._file_name("/usr/bin/cc") != name


@needs_compiler
@pytest.mark.parametrize("writable", ["file", "folder"])
def test_what_others_can_write_is_not_loaded(fresh: Path, writable: str) -> None:
    made = find_library()
    assert made is not None
    (made if writable == "file" else fresh).chmod(0o777)
    library._status.cache_clear()
    status = native_status()
    if writable == "file":  # it is replaced by one of our own
        assert status.library == made and made.stat().st_mode & 0o077 == 0
    else:
        assert status.library is None and "somebody else" in status.reason


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    status = native_status()
    assert status.library is None and "no C compiler" in status.reason


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'x.c:1: error: this one cannot' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    status = native_status()
    assert status.library is None and "this one cannot" in status.reason


def test_a_folder_that_cannot_be_made_is_a_reason(monkeypatch: pytest.MonkeyPatch,
                                                  tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("S2A_EDGE_CACHE", str(tmp_path / "file"))
    assert native_status().library is None


@needs_compiler
def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_library() is not None
    monkeypatch.setenv("S2A_EDGE_NATIVE", "0")
    assert native_status().reason == "S2A_EDGE_NATIVE=0"
