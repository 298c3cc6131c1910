"""A path to the data set that it holds."""

from __future__ import annotations

from pathlib import Path

from s2a_edge.run.data.arrays import ArrayDataSet
from s2a_edge.run.data.dataset import DataSet, DataTerms
from s2a_edge.run.data.decoding import printable
from s2a_edge.run.data.image_folder import ImageFolder
from s2a_edge.spec.errors import DataError


def open_data(path: Path | str, manifest: DataTerms) -> DataSet:
    """Open a folder of class folders, or an ``.npz``, for the bundle of ``manifest``.

    Raises:
        DataError: there is no such thing, it is neither, or it does not suit the bundle.
        BundleError: the bundle's image input and its preprocessing disagree.
    """
    path = Path(path)
    if path.is_dir():
        return ImageFolder(path, manifest)
    if path.suffix.lower() == ".npz" and path.is_file():
        return ArrayDataSet(path, manifest)
    raise DataError(
        where=printable(path),
        expected="a folder with one sub-folder of images per class, or an .npz file",
        got="another kind of file" if path.exists() else "nothing there",
        todo="check the path",
    )
