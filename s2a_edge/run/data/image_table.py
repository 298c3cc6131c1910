"""Images listed in a CSV file with what they are; the files lie where the CSV does, or below."""

from __future__ import annotations

from pathlib import Path

from s2a_edge.run.data.augmentation import Augmentation
from s2a_edge.run.data.dataset import DataTerms
from s2a_edge.run.data.decoding import printable
from s2a_edge.run.data.image_files import ImageFiles
from s2a_edge.run.data.label_table import FILE_COLUMNS, LabelTable, read_label_table
from s2a_edge.run.data.preprocessing import check_image_input
from s2a_edge.spec.errors import DataError

TABLE_NAME = "labels.csv"
_MAX_LISTED = 5


class ImageTable(ImageFiles):
    """A :class:`~s2a_edge.run.data.dataset.DataSet` over the rows of a CSV file.

    Samples are in the order of the file. Paths are relative to the file's folder.

    Args:
        path: the CSV file; :mod:`s2a_edge.run.data.label_table` says what it holds.
        manifest: of the bundle: its task, its image input and its preprocessing.
        augmentation: what ``load`` does where it is given a random stream.

    Raises:
        DataError: the file cannot be used, or lists an image twice or one that is not there.
        BundleError: the bundle's image input and its preprocessing disagree.
    """

    def __init__(
        self, path: Path, manifest: DataTerms, augmentation: Augmentation | None = None
    ) -> None:
        check_image_input(manifest.inputs, manifest.preprocessing)
        table = read_label_table(path, manifest.task, FILE_COLUMNS)
        _check_files(table, path)
        super().__init__(
            path, path.parent, manifest, table.samples, table.targets, augmentation
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system takes
        return False


def _check_files(table: LabelTable, path: Path) -> None:
    """Every image is there, and listed once."""
    first: dict[str, int] = {}
    for name, line in zip(table.samples, table.lines, strict=True):
        if name in first:
            raise DataError(
                where=f"{printable(path)}, line {line}",
                expected="every image once",
                got=f"{printable(name)!r} again, after line {first[name]}",
                todo="give each image one row",
            )
        first[name] = line
    absent = [name for name in table.samples if not _is_file(path.parent / name)]
    if absent:
        listed = ", ".join(
            f"{printable(name)!r} (line {first[name]})" for name in absent[:_MAX_LISTED]
        )
        more = f" and {len(absent) - _MAX_LISTED} more" if len(absent) > _MAX_LISTED else ""
        raise DataError(
            where=printable(path),
            expected="images that are there, relative to the folder of this file",
            got=f"none for {listed}{more}",
            todo="correct the paths, or remove the rows",
        )
