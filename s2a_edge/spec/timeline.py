"""Who is alive when: the planned buffers of a training step, kept in the bundle for drawings.

The file is gzipped JSON, columns of equal length for the buffers of arena and pool, in the order in
which they begin to live, and the names of the nodes in the order in which they run. A buffer is
alive in the nodes [start, end).
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from s2a_edge.spec import strict_json
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.memory_plan import MAX_NODES, ByteCount, MemoryKind
from s2a_edge.spec.storage import storage_errors
from s2a_edge.spec.strict_json import Length, Span

FORMAT: Final = "s2a-timeline"
TIMELINE_SUFFIX: Final = ".timeline.json.gz"
_MAX_BYTES = 2**28  # unpacked; a step of a hundred thousand nodes takes a tenth of it

Index = Annotated[int, Span(0, MAX_NODES)]
Names = Annotated[tuple[str, ...], Length(0, MAX_NODES)]


@dataclass(frozen=True)
class Timeline:
    """Buffers of one graph.

    Attributes:
        nodes: names, in the order of execution.
        values: name of each buffer's first value.
        kinds: what each is for.
        sizes_bytes: as requested.
        starts: node that allocates it.
        ends: node after the last that reads it.
    """

    format: Literal["s2a-timeline"]
    nodes: Names
    values: Names
    kinds: Annotated[tuple[MemoryKind, ...], Length(0, MAX_NODES)]
    sizes_bytes: Annotated[tuple[ByteCount, ...], Length(0, MAX_NODES)]
    starts: Annotated[tuple[Index, ...], Length(0, MAX_NODES)]
    ends: Annotated[tuple[Index, ...], Length(0, MAX_NODES)]

    def live_bytes(self) -> dict[MemoryKind, list[int]]:
        """Bytes alive in each node, by kind."""
        live = {kind: [0] * (len(self.nodes) + 1) for kind in MemoryKind}
        for kind, size, start, end in zip(
            self.kinds, self.sizes_bytes, self.starts, self.ends, strict=True
        ):
            live[kind][start] += size
            live[kind][end] -= size
        for changes in live.values():
            for node in range(1, len(changes)):
                changes[node] += changes[node - 1]
            changes.pop()
        return live


def pack_timeline(timeline: Timeline) -> bytes:
    """The file's content; the same timeline gives the same bytes."""
    text = json.dumps(strict_json.plain(timeline), separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def read_timeline(path: Path) -> Timeline:
    """Read a bundle's timeline.

    Raises:
        BundleError: it is damaged.
        StorageError: it cannot be read.
    """
    with storage_errors(path, "to read the timeline"):
        content = path.read_bytes()
    try:
        with gzip.open(io.BytesIO(content)) as file:
            raw = file.read(_MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, str(error)) from error
    if len(raw) > _MAX_BYTES:
        raise _damaged(path, f"more than {_MAX_BYTES} bytes")
    value = strict_json.parse(raw.decode("utf-8", "replace"), where=path.name)
    timeline = strict_json.read(Timeline, value, file=path.name)
    columns = (timeline.kinds, timeline.sizes_bytes, timeline.starts, timeline.ends)
    last = len(timeline.nodes)
    if any(len(column) != len(timeline.values) for column in columns):
        raise _damaged(path, "columns of different lengths")
    if any(not s <= e <= last for s, e in zip(timeline.starts, timeline.ends, strict=True)):
        raise _damaged(path, "a buffer outside of the graph")
    return timeline


def _damaged(path: Path, got: str) -> BundleError:
    return BundleError(
        where=path.name, expected="a timeline", got=got, todo="copy the bundle again, or pack it"
    )
