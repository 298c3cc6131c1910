"""Images in class sub-folders: ``DIR/<label>/**/*.jpg`` and other formats."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from s2a_edge.run.data.augmentation import Augmentation
from s2a_edge.run.data.class_names import match_folders
from s2a_edge.run.data.dataset import DataTerms
from s2a_edge.run.data.decoding import EXTENSIONS, printable
from s2a_edge.run.data.dtypes import I64
from s2a_edge.run.data.image_files import ImageFiles
from s2a_edge.run.data.preprocessing import check_image_input
from s2a_edge.spec.errors import DataError


class ImageFolder(ImageFiles):
    """A :class:`~s2a_edge.run.data.dataset.DataSet` over class folders.

    Samples are ordered by class index, then by name, whatever order the file system lists them in.
    Hidden files, hidden folders and files with other extensions are left out.

    Args:
        path: folder that holds one sub-folder per class.
        manifest: of the bundle: its labels, its image input and its preprocessing.
        augmentation: what ``load`` does where it is given a random stream.

    Raises:
        DataError: no class folder, one without images, one the bundle has no label for, or a
            bundle that does not take images.
        BundleError: its image input and its preprocessing disagree.
    """

    def __init__(
        self, path: Path, manifest: DataTerms, augmentation: Augmentation | None = None
    ) -> None:
        check_image_input(manifest.inputs, manifest.preprocessing)
        names, labels = _scan(path, manifest)
        super().__init__(path, path, manifest, names, labels, augmentation)


def _scan(path: Path, manifest: DataTerms) -> tuple[list[str], I64]:
    try:
        folders = sorted(x.name for x in path.iterdir() if x.is_dir() and x.name[0] != ".")
        found = match_folders(folders, manifest.task, where=printable(path))
        names: list[str] = []
        labels: list[int] = []
        for label, folder in found:
            images = _images(path, folder)
            if not images:
                raise _no_images(path / folder, "a class folder with images")
            names += images
            labels += [label] * len(images)
    except OSError as error:
        raise DataError(
            where=printable(path),
            expected="a folder that can be read",
            got=error.strerror or type(error).__name__,
            todo="check the path and its permissions",
        ) from error
    return names, np.array(labels, dtype=np.int64)


def _images(root: Path, folder: str) -> list[str]:
    """Paths of all images below ``folder``, relative to ``root``, sorted."""
    names: list[str] = []
    for parent, folders, files in os.walk(root / folder, onerror=_refuse):
        folders[:] = [x for x in folders if not x.startswith(".")]
        inside = Path(parent).relative_to(root)
        names += [
            (inside / file).as_posix()
            for file in files
            if not file.startswith(".") and Path(file).suffix.lower() in EXTENSIONS
        ]
    return sorted(names)


def _refuse(error: OSError) -> None:
    raise error


def _no_images(folder: Path, expected: str) -> DataError:
    return DataError(
        where=printable(folder),
        expected=expected,
        got="none",
        todo=f"add images ({', '.join(sorted(x[1:] for x in EXTENSIONS))}) or remove the folder",
    )
