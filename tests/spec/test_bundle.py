from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from s2a_edge.spec import bundle_unpack
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.bundle_write import write_bundle
from s2a_edge.spec.errors import BundleError
from tests.spec import bundle_samples


@pytest.fixture(params=["folder", "tar"])
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The sample bundle in both of its forms."""
    return bundle_samples.write_sample(tmp_path / ("b" if request.param == "folder" else "b.s2a"))


@pytest.mark.parametrize("verify", [True, False])
def test_an_opened_bundle_is_what_was_written(sample: Path, verify: bool) -> None:
    with Bundle.open(str(sample), verify=verify) as bundle:
        assert bundle.manifest == bundle_samples.manifest()
        assert bundle.file("eval.onnx").read_bytes() == (
            bundle_samples.models()["eval.onnx"].SerializeToString()
        )
        weights = bundle.weights()
        np.testing.assert_array_equal(weights["backbone.weight"], bundle_samples.backbone_weight())
        assert isinstance(weights["backbone.weight"], np.memmap)
        assert not weights["backbone.weight"].flags.writeable
        initial = bundle.initial_parameters()
        assert list(initial) == [t.name for t in bundle.manifest.trainables]
        for name, array in bundle_samples.parameters().items():
            np.testing.assert_array_equal(initial[name], array)
    # Mapped weights outlive the bundle.
    assert weights["backbone.weight"][0, 1] == 1


def test_sha256sum_agrees(sample: Path) -> None:
    with Bundle.open(sample) as bundle:
        done = subprocess.run(
            ["sha256sum", "--check", "--strict", "SHA256SUMS"],
            cwd=bundle.path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(": OK") == 8


def test_the_hash_covers_every_file(tmp_path: Path) -> None:
    folder = bundle_samples.write_sample(tmp_path / "b")
    with Bundle.open(folder) as bundle:
        content = (folder / "SHA256SUMS").read_bytes()
        assert bundle.hash == hashlib.sha256(content).hexdigest()
        before, manifest = bundle.hash, (folder / "manifest.json").read_bytes()
    weights = bytearray((folder / "weights.bin").read_bytes())
    weights[0] ^= 1
    (folder / "weights.bin").write_bytes(weights)
    new = hashlib.sha256(weights).hexdigest()
    lines = [
        line if not line.endswith("  weights.bin") else f"{new}  weights.bin"
        for line in content.decode().splitlines()
    ]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    with Bundle.open(folder) as bundle:
        assert (folder / "manifest.json").read_bytes() == manifest
        assert bundle.hash != before


def test_only_listed_files_are_given(sample: Path) -> None:
    with Bundle.open(sample) as bundle:
        for name in ("../b", "/etc/passwd", "other.onnx", "", "SHA256SUMS"):
            with pytest.raises(BundleError, match="expected one of"):
                bundle.file(name)


def test_plain_tar_of_the_same_files_opens(tmp_path: Path) -> None:
    folder = bundle_samples.write_sample(tmp_path / "b")
    names = ["manifest.json", "SHA256SUMS", *bundle_samples.manifest().files()]
    subprocess.run(["tar", "cf", tmp_path / "c.s2a", "-C", folder, *names], check=True)
    with Bundle.open(tmp_path / "c.s2a") as bundle:
        assert bundle.manifest == bundle_samples.manifest()


def test_a_tar_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle_samples.write_sample(tmp_path / "b.s2a")
    with Bundle.open(path) as bundle:
        folder = bundle.path
    assert folder.parent == tmp_path
    assert folder.name.startswith("b.s2a.unpacked-")
    assert folder.stat().st_mode & 0o777 == 0o755
    monkeypatch.setattr(bundle_unpack, "_unpack_new", lambda *args: pytest.fail("unpacked again"))
    with Bundle.open(path) as bundle, Bundle.open(path) as again:
        assert bundle.path == again.path == folder


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty folder", "file", "link"])
def test_a_damaged_unpacked_folder_is_made_again(tmp_path: Path, damage: str) -> None:
    path = bundle_samples.write_sample(tmp_path / "b.s2a")
    with Bundle.open(path) as bundle:
        folder, weights = bundle.path, bundle.file("weights.bin")
    content = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(b"\xff" + content[1:])
    elif damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "remove":
        weights.unlink()
    else:
        shutil.rmtree(folder)
        if damage == "empty folder":
            folder.mkdir()
        elif damage == "file":
            folder.write_text("in the way")
        else:
            folder.symlink_to("/")
    with Bundle.open(path) as bundle:
        assert bundle.path == folder
        assert not folder.is_symlink()
        assert weights.read_bytes() == content
    assert {p.name for p in tmp_path.iterdir()} == {"b.s2a", folder.name}


def test_folders_of_former_contents_go_when_unused(tmp_path: Path) -> None:
    path = bundle_samples.write_sample(tmp_path / "b.s2a")
    used = Bundle.open(path)
    half = tmp_path / "b.s2a.unpacking-killed"  # left by a process that was killed
    half.mkdir()
    (half / "weights.bin").write_bytes(b"0" * 100)
    neighbour = tmp_path / "b.s2a.unpacked-by-me"
    neighbour.mkdir()

    staging = bundle_samples.stage(tmp_path / "staging")
    newer = dataclasses.replace(bundle_samples.manifest(), tool_version="0.2.0")
    write_bundle(staging, newer, path)
    with Bundle.open(path) as bundle:
        assert bundle.manifest.tool_version == "0.2.0"
        assert bundle.path != used.path
        assert used.path.is_dir()
    assert not half.exists()
    used.close()
    with Bundle.open(path):
        assert not used.path.exists()
    assert neighbour.is_dir()


def test_read_only_places_get_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "media"
    place.mkdir()
    path = bundle_samples.write_sample(place / "b.s2a")
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setattr("tempfile.tempdir", None)
    real = tempfile.mkdtemp

    def read_only(prefix: str, dir: Path | None) -> str:
        if dir == place:
            raise OSError(30, "Read-only file system")  # EROFS; root ignores permissions
        return str(real(prefix=prefix, dir=dir))

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with Bundle.open(path) as bundle:
        assert bundle.path.parent == elsewhere
        weights = bundle.weights()
    assert list(elsewhere.iterdir()) == []
    assert weights["backbone.weight"][5, 4] == 29
    assert [p.name for p in place.iterdir()] == ["b.s2a"]
    leaked = Bundle.open(path)
    assert len(list(elsewhere.iterdir())) == 1
    del leaked
    assert list(elsewhere.iterdir()) == []


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "zeros.s2a").write_bytes(bytes(10_240))
    (tmp_path / "nothing.s2a").write_bytes(b"")
    (tmp_path / "text.s2a").write_text("hello " * 1000)
    (tmp_path / "gz.s2a").write_bytes(b"\x1f\x8b" + bytes(1000))
    for name, message in [
        ("missing", "no such file"),
        ("empty", "no manifest.json"),
        ("zeros.s2a", "another kind of file"),
        ("nothing.s2a", "cut off"),
        ("text.s2a", "another kind of file"),
        ("gz.s2a", "expected an uncompressed tar, got gzip data; unpack it first"),
    ]:
        with pytest.raises(BundleError, match=message):
            Bundle.open(tmp_path / name)
    with pytest.raises(BundleError, match="a device"):
        Bundle.open("/dev/null")


def test_parameters_must_be_those_of_the_manifest(tmp_path: Path) -> None:
    wrong: dict[str, dict[str, npt.NDArray[Any]]] = {
        "differ": {"head.bias": np.zeros(3, np.float32), "other": np.zeros((5, 3), np.float32)},
        "float64": {"head.bias": np.zeros(3), "head.weight": np.zeros((5, 3), np.float32)},
        "[3, 5]": {
            "head.bias": np.zeros(3, np.float32),
            "head.weight": np.zeros((3, 5), np.float32),
        },
        "NaN": {
            "head.bias": np.full(3, np.nan, np.float32),
            "head.weight": np.zeros((5, 3), np.float32),
        },
    }
    for number, (message, parameters) in enumerate(wrong.items()):
        staging = bundle_samples.stage(tmp_path / f"staging{number}")
        save_file(parameters, staging / "adapters.safetensors")
        out = write_bundle(staging, bundle_samples.manifest(), tmp_path / f"b{number}")
        with Bundle.open(out) as bundle, pytest.raises(BundleError) as error:
            bundle.initial_parameters()
        assert message in str(error.value)


def test_extra_files_in_a_folder_are_ignored_in_a_tar_refused(tmp_path: Path) -> None:
    folder = bundle_samples.write_sample(tmp_path / "b")
    (folder / "README").write_text("mine")
    with Bundle.open(folder) as bundle, pytest.raises(BundleError):
        bundle.file("README")
    path = bundle_samples.write_sample(tmp_path / "c.s2a")
    with tarfile.open(path, "a:") as tar:
        tar.addfile(tarfile.TarInfo("README"), io.BytesIO())
    with pytest.raises(BundleError, match="a difference in README"):
        Bundle.open(path)
