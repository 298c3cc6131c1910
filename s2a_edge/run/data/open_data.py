"""A path to the data set that it holds."""

from __future__ import annotations

from pathlib import Path

from s2a_edge.run.data.arrays import ArrayDataSet
from s2a_edge.run.data.dataset import DataSet, DataTerms
from s2a_edge.run.data.decoding import printable
from s2a_edge.run.data.image_folder import ImageFolder
from s2a_edge.run.data.image_table import TABLE_NAME, ImageTable
from s2a_edge.run.data.text_table import TextTable
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import TextPreprocessing


def open_data(path: Path | str, manifest: DataTerms, folder: Path | None = None) -> DataSet:
    """Open what ``path`` holds for the bundle of ``manifest``.

    A folder with a ``labels.csv``, or a CSV file, lists images or texts with their targets; a
    folder without one has class folders; an ``.npz`` has arrays.

    Args:
        path: the data.
        manifest: of the bundle, or the part of it that data must suit.
        folder: of the bundle, where the tokenizer of texts is.

    Raises:
        DataError: there is no such thing, it is none of these, or it does not suit the bundle.
        BundleError: the bundle's input and its preprocessing disagree.
        DeviceError: texts are to be read and the library for that is missing.
    """
    path, task = Path(path), manifest.task
    if path.suffix.lower() == ".npz" and path.is_file():
        return ArrayDataSet(path, manifest)
    if isinstance(manifest.preprocessing, TextPreprocessing):
        return _open_texts(path, manifest, manifest.preprocessing, folder)
    if task.loss != "output":
        if path.is_dir() and (path / TABLE_NAME).is_file():
            return ImageTable(path / TABLE_NAME, manifest)
        if path.suffix.lower() == ".csv" and path.is_file():
            return ImageTable(path, manifest)
        if path.is_dir() and task.loss == "cross_entropy":
            return ImageFolder(path, manifest)
    raise DataError(
        where=printable(path),
        expected=_EXPECTED[task.loss],
        got=_kind(path),
        todo="check the path",
    )


def _open_texts(
    path: Path, manifest: DataTerms, spec: TextPreprocessing, folder: Path | None
) -> DataSet:
    table = path / TABLE_NAME if path.is_dir() else path
    if folder is not None and table.suffix.lower() == ".csv" and table.is_file():
        return TextTable(table, manifest, spec, folder / spec.tokenizer)
    raise DataError(
        where=printable(path),
        expected=f"a CSV file of texts (or a folder with {TABLE_NAME}), or an .npz file",
        got=_kind(path),
        todo="check the path",
    )


_TABLE = f"a folder of images with a {TABLE_NAME}, a CSV file, or an .npz file"
_EXPECTED = {
    "cross_entropy": "a folder with one sub-folder of images per class or a "
    f"{TABLE_NAME}, a CSV file, or an .npz file",
    "bce": _TABLE,
    "mse": _TABLE,
    "l1": _TABLE,
    "output": "an .npz file, since the loss is the graph's own and takes all its inputs",
}


def _kind(path: Path) -> str:
    if path.is_dir():
        return f"a folder without {TABLE_NAME}"
    return "another kind of file" if path.exists() else "nothing there"
