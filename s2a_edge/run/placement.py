"""Which nodes the runtime left to the CPU, from what it says while it makes a session.

With ``session.disable_cpu_ep_fallback`` it refuses a graph without naming the node. Its log at the
most talkative level does name it, on the process's standard error, which is read from a file for
as long as the session is made once more.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable

FALLBACK_REFUSED = "fallback to CPU EP has been explicitly disabled"
_NO_KERNEL = re.compile(r"CUDA kernel not found in registries for Op type: (\S+) node name: (\S+)")
_NO_NODE = re.compile(r"^(Memcpy|All nodes|Node\(s\)|Some )")
_SHOWN = 3


def said_while(make: Callable[[], object]) -> str:
    """What ``make`` and the libraries that it calls wrote to standard error; nothing is shown.

    Whatever it raises is left to the caller's first attempt to report.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            make()
        except RuntimeError:  # every exception of the runtime's binding is one
            pass
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        log.seek(0)
        return log.read().decode(errors="replace")


def placed_on(text: str, provider: str) -> list[str]:
    """Nodes of ``provider`` in the log's list of placements, as ``Type (name)``."""
    nodes: list[str] = []
    inside = False
    for line in text.splitlines():
        body = line.partition("VerifyEachNodeIsAssignedToAnEp] ")[2].strip()
        if not body:
            inside = False
        elif "placed on [" in body:
            inside = f"[{provider}]" in body
        elif inside and not _NO_NODE.match(body):
            nodes.append(body)
    return nodes


def left_to_the_cpu(text: str) -> str:
    """The nodes that keep a graph from CUDA, in words; says so if the log does not tell."""
    named = [f"{op} {name}" for op, name in _NO_KERNEL.findall(text)]
    nodes = list(dict.fromkeys(named or placed_on(text, "CPUExecutionProvider")))
    if not nodes:
        return "a node that it does not name"
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return ", ".join(nodes[:_SHOWN]) + more


__all__ = ["FALLBACK_REFUSED", "left_to_the_cpu", "placed_on", "said_while"]
