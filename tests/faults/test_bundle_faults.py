"""Bundles that were cut off, damaged, or made to harm."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.checksums import format_sums, sha256_file
from s2a_edge.spec.errors import BundleError, BundleIntegrityError
from tests.spec import bundle_samples

FILES = ("manifest.json", "SHA256SUMS", *bundle_samples.manifest().files())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample as ``b`` and ``b.s2a``; never changed."""
    folder = tmp_path_factory.mktemp("pristine")
    bundle_samples.write_sample(folder / "b")
    bundle_samples.write_sample(folder / "b.s2a")
    return folder


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def left_over(folder: Path) -> list[str]:
    """What an operation on ``b.s2a`` left in its folder beside the file itself."""
    return [p.name for p in folder.iterdir() if p.name not in ("b.s2a", "staging")]


def repacked(folder: Path, out: Path, change: Callable[[str], tarfile.TarInfo | None]) -> Path:
    """The bundle in ``folder`` as a tar whose headers ``change`` may replace, by file name."""
    with tarfile.open(out, "w:", format=tarfile.GNU_FORMAT) as tar:
        for name in FILES:
            content = (folder / name).read_bytes()
            info = change(name) or tarfile.TarInfo(name)
            info.size = info.size or len(content)
            if info.type in (tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE):
                tar.addfile(info, io.BytesIO(content.ljust(info.size, b"\0")))
            else:
                info.size = 0
                tar.addfile(info)
    return out


@pytest.mark.parametrize("tenth", range(10))
def test_tars_cut_off_anywhere(pristine: Path, tmp_path: Path, tenth: int) -> None:
    content = (pristine / "b.s2a").read_bytes()
    path = tmp_path / "b.s2a"
    path.write_bytes(content[: len(content) * tenth // 10])
    with pytest.raises(BundleIntegrityError, match="cut off"):
        Bundle.open(path)
    assert left_over(tmp_path) == []


def test_a_tar_without_its_end_mark_was_cut_off(pristine: Path, tmp_path: Path) -> None:
    content = (pristine / "b.s2a").read_bytes()
    for missing in (1, 512, 513, 1024):
        (tmp_path / "b.s2a").write_bytes(content[:-missing])
        with pytest.raises(BundleIntegrityError, match="cut off"):
            Bundle.open(tmp_path / "b.s2a")


@pytest.mark.parametrize("name", FILES)
def test_folders_with_a_file_cut_off_flipped_or_lost(
    pristine: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(pristine / "b", folder)
    content = (folder / name).read_bytes()
    for tenth in range(10):
        (folder / name).write_bytes(content[: len(content) * tenth // 10])
        with pytest.raises(BundleError):
            Bundle.open(folder)
    for position in {0, len(content) // 3, len(content) - 1}:
        (folder / name).write_bytes(flip(content, position))
        with pytest.raises(BundleError):
            Bundle.open(folder)
    (folder / name).write_bytes(content + b"\0")
    with pytest.raises(BundleError):
        Bundle.open(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(folder)
    (folder / name).write_bytes(content)
    Bundle.open(folder).close()


@pytest.mark.parametrize("name", FILES)
def test_links_in_folders_are_refused(pristine: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "b"
    shutil.copytree(pristine / "b", folder)
    (folder / name).unlink()
    (folder / name).symlink_to(pristine / "b" / name)
    with pytest.raises(BundleIntegrityError, match=r"plain file, got a link"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_a_tar_is_named(pristine: Path, tmp_path: Path, name: str) -> None:
    content = (pristine / "b.s2a").read_bytes()
    with tarfile.open(pristine / "b.s2a") as tar:
        member = tar.getmember(name)
    path = tmp_path / "b.s2a"
    for position in (member.offset_data, member.offset_data + member.size - 1):
        path.write_bytes(flip(content, position))
        with pytest.raises(BundleError) as error:
            Bundle.open(path)
        if name not in ("SHA256SUMS", "manifest.json"):
            assert error.value.where == name
            assert "SHA-256" in error.value.expected
        assert left_over(tmp_path) == []
    for position in (member.offset, member.offset + 130, member.offset + 150):
        path.write_bytes(flip(content, position))
        with pytest.raises(BundleError):
            Bundle.open(path)


def typed(kind: bytes, linkname: str = "") -> Callable[[str], tarfile.TarInfo]:
    def make(name: str) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, linkname
        return info

    return make


def named(name: str) -> Callable[[str], tarfile.TarInfo]:
    return lambda _: tarfile.TarInfo(name)


@pytest.mark.parametrize(
    ("evil", "message"),
    [
        (named("../evil"), "plain file names"),
        (named("/etc/evil"), "plain file names"),
        (named("a/evil"), "plain file names"),
        (named("./eval.onnx"), "plain file names"),
        (named(".hidden"), "plain file names"),
        (named("évil"), "plain file names"),
        (named("a\\evil"), "plain file names"),
        (named("long" * 30), "plain files only"),  # a GNU long-name header
        (named("train_b1.onnx"), "every file once, got train_b1.onnx again"),
        (named("manifest.json"), "every file once, got manifest.json again"),
        (named("MANIFEST.JSON"), "a difference in"),
        (named("other.bin"), "a difference in eval.onnx, other.bin"),
        (typed(tarfile.SYMTYPE, "/etc/passwd"), "plain files only"),
        (typed(tarfile.LNKTYPE, "manifest.json"), "plain files only"),
        (typed(tarfile.REGTYPE, "manifest.json"), "plain files only"),
        (typed(tarfile.CHRTYPE), "plain files only"),
        (typed(tarfile.BLKTYPE), "plain files only"),
        (typed(tarfile.FIFOTYPE), "plain files only"),
        (typed(tarfile.DIRTYPE), "plain files only"),
        (typed(tarfile.CONTTYPE), "plain files only"),
        (typed(tarfile.GNUTYPE_SPARSE), "plain files only"),
    ],
)
def test_tars_made_to_harm(
    pristine: Path, tmp_path: Path, evil: Callable[[str], tarfile.TarInfo], message: str
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = repacked(
        pristine / "b", inside / "b.s2a", lambda name: evil(name) if name == "eval.onnx" else None
    )
    with pytest.raises(BundleError, match=message):
        Bundle.open(path)
    assert left_over(inside) == []
    assert left_over(tmp_path) == ["inside"]


def test_extended_headers_are_refused(pristine: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.s2a"
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as tar:
        for name in FILES:
            info = tarfile.TarInfo(name)
            info.pax_headers = {"path": "../../evil"} if name == "eval.onnx" else {}
            content = (pristine / "b" / name).read_bytes()
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(BundleError, match="plain files only"):
        Bundle.open(path)


def test_the_manifest_comes_first(pristine: Path, tmp_path: Path) -> None:
    names = ["SHA256SUMS", "manifest.json", *FILES[2:]]
    subprocess.run(["tar", "cf", tmp_path / "b.s2a", "-C", pristine / "b", *names], check=True)
    with pytest.raises(BundleError, match="first"):
        Bundle.open(tmp_path / "b.s2a")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size_bytes", [2**20, 2**33 - 1, 2**62])
def test_huge_declared_sizes_cost_nothing(
    pristine: Path, tmp_path: Path, name: str, size_bytes: int
) -> None:
    """A header that promises far more than the file or the manifest holds; the tail is a hole."""
    content = (pristine / "b.s2a").read_bytes()
    with tarfile.open(pristine / "b.s2a") as tar:
        member = tar.getmember(name)
    header = tarfile.TarInfo(name)
    header.size = size_bytes
    path = tmp_path / "b.s2a"
    with path.open("wb") as file:
        file.write(content[: member.offset])
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.write(content[member.offset_data :])
        if size_bytes < 2**34:
            file.truncate(member.offset_data + size_bytes + 4096)  # sparse
    tracemalloc.start()
    try:
        with pytest.raises(BundleError):
            Bundle.open(path)
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()
    assert left_over(tmp_path) == []


@settings(max_examples=150)
@given(st.data())
def test_mutated_tars_raise_bundle_errors_only(
    tmp_path_factory: pytest.TempPathFactory, pristine: Path, data: st.DataObject
) -> None:
    content = bytearray((pristine / "b.s2a").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        # Headers are where the damage is interesting: stay near the start of a block.
        block = data.draw(st.integers(0, len(content) // 512 - 1))
        start = block * 512 + data.draw(st.integers(0, 511))
        content[start : start + 1] = data.draw(st.binary(min_size=1, max_size=3))
    folder = tmp_path_factory.mktemp("mutated")
    (folder / "b.s2a").write_bytes(content)
    try:
        with Bundle.open(folder / "b.s2a") as bundle:
            assert bundle.manifest == bundle_samples.manifest()
    except BundleError:
        assert left_over(folder) == []
    finally:
        shutil.rmtree(folder)


@settings(max_examples=60)
@given(st.data())
def test_mutated_files_with_right_checksums_raise_bundle_errors_only(
    tmp_path_factory: pytest.TempPathFactory, pristine: Path, data: st.DataObject
) -> None:
    """Someone who can write a bundle can also write its checksums."""
    folder = tmp_path_factory.mktemp("forged") / "b"
    shutil.copytree(pristine / "b", folder)
    name = data.draw(st.sampled_from(FILES[2:]))
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (folder / name).write_bytes(content)
    sums = {n: sha256_file(folder / n) for n in FILES if n != "SHA256SUMS"}
    (folder / "SHA256SUMS").write_bytes(format_sums(sums))
    try:
        with Bundle.open(folder) as bundle:
            bundle.weights()
            bundle.initial_parameters()
    except BundleError as error:
        assert error.where and error.todo  # both outcomes are right
    finally:
        shutil.rmtree(folder.parent)
