"""Disks that refuse, and processes that die, while a bundle is written or unpacked."""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.bundle_write import write_bundle, write_weights
from s2a_edge.spec.errors import StorageError
from tests.spec import bundle_samples


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample as ``b.s2a``; never changed."""
    folder = tmp_path_factory.mktemp("pristine")
    bundle_samples.write_sample(folder / "b.s2a")
    return folder


def left_over(folder: Path) -> list[str]:
    """What an operation on ``b.s2a`` left in its folder beside the file itself."""
    return [p.name for p in folder.iterdir() if p.name not in ("b.s2a", "staging")]


class Refusing:
    """Replaces a function; refuses from one call to another, counted from 1."""

    def __init__(
        self, real: Callable[..., Any], code: int, first_call: int, last_call: int = 10**9
    ) -> None:
        self.real, self.code, self.refused = real, code, range(first_call, last_call + 1)
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls in self.refused:
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **kwargs)

    def __get__(self, instance: object, owner: type[object] | None = None) -> Callable[..., Any]:
        # As a method of Path: bind, like a function would.
        return self if instance is None else partial(self, instance)


@pytest.mark.parametrize("at_call", range(1, 11))
def test_a_disk_that_fills_while_unpacking(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    path = tmp_path / "b.s2a"
    shutil.copy(pristine / "b.s2a", path)
    with monkeypatch.context() as patch:
        # fsync is where a full disk shows at the latest.
        patch.setattr("os.fsync", Refusing(os.fsync, errno.ENOSPC, at_call))
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            Bundle.open(path)
    assert left_over(tmp_path) == []
    Bundle.open(path).close()


def test_too_little_space_to_unpack_is_said_before_writing(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.s2a"
    shutil.copy(pristine / "b.s2a", path)
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(StorageError, match="free bytes, got 100"):
        Bundle.open(path)
    assert left_over(tmp_path) == []


def fail_at(patch: pytest.MonkeyPatch, step: str, code: int) -> None:
    """Make one step of writing a bundle fail."""
    if step.startswith("sync"):
        patch.setattr("os.fsync", Refusing(os.fsync, code, int(step[-1])))
    elif step == "rename file":
        patch.setattr("pathlib.Path.replace", Refusing(Path.replace, code, 1))
    else:
        # "step aside" is the old folder's rename, "step in" the new one's. After it the old one
        # is renamed back, which must still work.
        number = 1 if step == "step aside" else 2
        patch.setattr("pathlib.Path.rename", Refusing(Path.rename, code, number, last_call=number))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("b.s2a", "sync 1"),
        ("b.s2a", "rename file"),
        ("b", "sync 1"),
        ("b", "sync 9"),
        ("b", "step aside"),
        ("b", "step in"),
    ],
)
def test_a_bundle_survives_a_failed_write_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: str, code: int
) -> None:
    out = bundle_samples.write_sample(tmp_path / name)
    before = contents(out)
    staging = bundle_samples.stage(tmp_path / "staging")
    newer = dataclasses.replace(bundle_samples.manifest(), tool_version="9.9")
    with monkeypatch.context() as patch:
        fail_at(patch, step, code)
        with pytest.raises(StorageError) as error:
            write_bundle(staging, newer, out)
    assert os.strerror(code) in error.value.got
    assert contents(out) == before
    assert {p.name for p in tmp_path.iterdir()} == {name, "staging"}
    # And once the disk works again, so does the same call.
    with Bundle.open(write_bundle(staging, newer, out)) as bundle:
        assert bundle.manifest.tool_version == "9.9"


def contents(bundle: Path) -> dict[str, bytes]:
    files = [bundle] if bundle.is_file() else bundle.iterdir()
    return {file.name: file.read_bytes() for file in files}


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """A limit of the system itself: a write beyond it fails with EFBIG, half done."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit_bytes", [0, 100, 3000, 5000, 9000])
def test_writes_that_stop_half_way(pristine: Path, tmp_path: Path, limit_bytes: int) -> None:
    path = bundle_samples.write_sample(tmp_path / "b.s2a")
    before = path.read_bytes()
    staging = bundle_samples.stage(tmp_path / "staging")
    with file_size_limit(limit_bytes), pytest.raises(StorageError, match="File too large; free"):
        write_bundle(staging, bundle_samples.manifest(), path)
    assert path.read_bytes() == before
    if limit_bytes <= 3000:  # the largest member, the manifest, has 4 kB
        with file_size_limit(limit_bytes), pytest.raises(StorageError, match="File too large"):
            Bundle.open(path)
    assert left_over(tmp_path) == []


def test_a_failed_weights_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", Refusing(os.fsync, errno.ENOSPC, 1))
    with pytest.raises(StorageError, match="to write the weights"):
        write_weights(tmp_path / "weights.bin", [("w", bundle_samples.backbone_weight())])
    assert list(tmp_path.iterdir()) == []


KILLED_WHILE_UNPACKING = """
import os, signal, sys
from s2a_edge.spec.bundle import Bundle
real, calls = os.fsync, 0
def fsync(descriptor):
    global calls
    calls += 1
    if calls == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
Bundle.open(sys.argv[1])
"""


def test_killed_while_unpacking(pristine: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.s2a"
    shutil.copy(pristine / "b.s2a", path)
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_UNPACKING, path], cwd=Path.cwd())
    assert done.returncode == -9
    (half,) = left_over(tmp_path)
    assert ".unpacking-" in half
    with Bundle.open(path) as bundle:
        assert left_over(tmp_path) == [bundle.path.name]


OPENED = """
import sys
from s2a_edge.spec.bundle import Bundle
print(Bundle.open(sys.argv[1]).path)
"""


def test_two_processes_open_one_tar_at_a_time(pristine: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.s2a"
    shutil.copy(pristine / "b.s2a", path)
    code = (
        "import sys; from s2a_edge.spec.bundle import Bundle; print(Bundle.open(sys.argv[1]).path)"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    (folder,) = folders
    assert left_over(tmp_path) == [Path(folder).name]
