"""Which class folder is which label of the bundle."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence

from s2a_edge.run.data.decoding import printable
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import Task

_MAX_LISTED = 8


def match_folders(folders: Sequence[str], task: Task, *, where: str) -> list[tuple[int, str]]:
    """Pair every class folder with its class index, in the order of the index.

    A label may lack a folder (validation sets often do); a folder may not lack a label. Names are
    compared in Unicode's composed form, since some file systems decompose them. A bundle without
    label names takes exactly ``task.classes`` folders, in the order given.

    Raises:
        DataError: no folder at all, or folders that the bundle has no label for.
    """
    if not folders:
        raise DataError(
            where=where,
            expected="one sub-folder of images per class",
            got="no sub-folder",
            todo="put the images of each class into a folder named like its label",
        )
    if not task.labels:
        return _match_by_order(folders, task.classes, where)
    index = {_composed(label): i for i, label in enumerate(task.labels)}
    unknown = [folder for folder in folders if _composed(folder) not in index]
    if unknown:
        known = {_composed(folder) for folder in folders}
        unused = [label for label in task.labels if _composed(label) not in known]
        raise _unknown_folders(unknown, unused, task.labels, where)
    return sorted((index[_composed(folder)], folder) for folder in folders)


def _match_by_order(folders: Sequence[str], classes: int, where: str) -> list[tuple[int, str]]:
    if len(folders) != classes:
        raise DataError(
            where=where,
            expected=f"{classes} class folders, since the bundle has no label names to go by",
            got=f"{len(folders)}: {_listed(folders)}",
            todo="add the missing folders, or pack with --labels",
        )
    return list(enumerate(folders))


def _unknown_folders(
    unknown: Sequence[str], unused: Sequence[str], labels: Sequence[str], where: str
) -> DataError:
    described = []
    for folder in unknown[:_MAX_LISTED]:
        close = difflib.get_close_matches(folder.lower(), [x.lower() for x in labels], n=1)
        original = next((x for x in labels if close and x.lower() == close[0]), None)
        hint = f" (did you mean {original!r}?)" if original else ""
        described.append(f"{printable(folder)!r}{hint}")
    more = f" and {len(unknown) - _MAX_LISTED} more" if len(unknown) > _MAX_LISTED else ""
    missing = f"; labels without a folder: {_listed(unused)}" if unused else ""
    return DataError(
        where=where,
        expected=f"class folders named like the bundle's {len(labels)} labels",
        got=f"unknown {', '.join(described)}{more}{missing}",
        todo="rename these folders, or give the folder that holds the class folders",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(printable(name)) for name in names[:_MAX_LISTED])
    return shown + (f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else "")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
