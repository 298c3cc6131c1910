"""Memory over a training step as one page: move over it to see who is alive at a node.

The page holds its data and its script; it loads nothing. Names come from the model and enter as
data only, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from s2a_edge.cli.memory_layers import Layer
from s2a_edge.spec.storage import replacing
from s2a_edge.spec.timeline import Timeline

_DATA = "/*DATA*/null"


def write_html(
    path: Path,
    title: str,
    shown: Sequence[Layer],
    timeline: Timeline,
    budget_bytes: int | None,
) -> None:
    """Write the page.

    Raises:
        StorageError: the file cannot be written.
    """
    data = {
        "title": title,
        "budget": budget_bytes,
        "nodes": timeline.nodes,
        "layers": [
            {
                "name": x.name,
                "colour": "rgb({},{},{})".format(*x.colour),
                "bytes": x.size_bytes[0] if x.steady else x.size_bytes,
            }
            for x in shown
        ],
        "values": timeline.values,
        "kinds": [kind.value for kind in timeline.kinds],
        "sizes": timeline.sizes_bytes,
        "starts": timeline.starts,
        "ends": timeline.ends,
    }
    page = resources.files("s2a_edge.cli").joinpath("memory_page.html").read_text("utf-8")
    # No "</script>" of a name may end the script, no "<!--" open a comment in it.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    with replacing(path, "to write the page") as file:
        file.write(page.replace(_DATA, text, 1).encode())
