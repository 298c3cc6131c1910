"""Which blocks and modules train: ``--blocks last:6`` and patterns of names.

Where only some blocks are chosen, what lies before the first of them is inference: no gradient
goes there, and nothing is kept of it. Layers that belong to no block (a patch embedding, a final
norm, the reduction between two stages) train with ``all``, and otherwise where they come after the
first chosen block: the gradient passes them anyway.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.blocks import Block
from s2a_edge.pack.graph import module_of
from s2a_edge.spec.errors import SourceError, UsageError

ALL = "all"
_COUNTED = re.compile(r"(last|first|every):([0-9]+)")
# What a plain module path cannot contain; a dot it can.
_REGEX_SIGNS = frozenset("*+?^$[](){}|\\")


@dataclass(frozen=True)
class Selection:
    """What trains.

    Attributes:
        blocks: the chosen ones, in order.
        nodes: the nodes of the backbone whose operands may train.
    """

    blocks: tuple[Block, ...]
    nodes: frozenset[ir.Node]


def select(graph: Iterable[ir.Node], found: Sequence[Block], blocks: str = ALL,
           modules: str | None = None) -> Selection:
    """The part of a backbone that trains.

    Args:
        graph: all its nodes, in order.
        found: its blocks.
        blocks: ``all``, ``last:N``, ``first:N``, ``every:N`` (counted from the last one) or
            patterns of names, see :func:`matches`.
        modules: patterns of the names of modules; None: all.

    Raises:
        UsageError: if nothing is chosen.
        SourceError: if some blocks are wanted of a backbone that has none.
    """
    nodes = list(graph)
    chosen = choose_blocks(found, blocks)
    trains = set(nodes)
    if blocks != ALL:
        others = {n for b in found if b not in chosen for n in b.nodes}
        first = nodes.index(chosen[0].nodes[0])
        trains = {n for n in nodes[first:] if n not in others}
    if modules is not None:
        names = sorted({module_of(n) for n in trains})
        trains = {n for n in trains if matches(module_of(n), modules)}
        if not trains:
            raise _no_match("--target-modules", modules, names)
    return Selection(chosen, frozenset(trains))


def choose_blocks(found: Sequence[Block], blocks: str) -> tuple[Block, ...]:
    """The blocks that ``--blocks`` asks for, in order; see :func:`select`."""
    if blocks == ALL:
        return tuple(found)
    if not found:
        raise SourceError(where=f"--blocks {blocks}", expected="a backbone with blocks",
                          got="no residual connections and no stages",
                          todo="use --blocks all, or --target-modules with names of modules")
    counted = _COUNTED.fullmatch(blocks)
    if counted is None:
        chosen = tuple(b for b in found if matches(b.name, blocks))
        if not chosen:
            raise _no_match("--blocks", blocks, [b.name for b in found])
        return chosen
    number = int(counted[2])
    if not 1 <= number <= len(found):
        raise UsageError(where="--blocks", expected=f"a number from 1 to {len(found)}, as many "
                         "blocks as there are", got=blocks, todo="give another number")
    if counted[1] == "every":
        return tuple(found[::-1][::number][::-1])
    return tuple(found[-number:] if counted[1] == "last" else found[:number])


def matches(name: str, wanted: str) -> bool:
    """Whether a module is meant, in the manner of PEFT's ``target_modules``.

    ``wanted`` is a list of paths or ends of paths (``qkv,mlp.fc1``), or, where it has a sign that
    no path has, a regular expression for the whole path. A module inside a meant one is meant too.
    """
    parts = name.split(".")
    paths = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    if _REGEX_SIGNS & set(wanted):
        try:
            return any(re.fullmatch(wanted, path) for path in paths)
        except re.error as error:
            raise UsageError(where="a pattern of names", expected="a regular expression",
                             got=f"{wanted}: {error}", todo="correct it") from error
    ends = [w.strip() for w in wanted.split(",") if w.strip()]
    return any(path == end or path.endswith(f".{end}") for path in paths for end in ends)


def _no_match(flag: str, wanted: str, names: Sequence[str]) -> UsageError:
    close = difflib.get_close_matches(wanted, names, n=5, cutoff=0.4) or list(names[:5])
    return UsageError(where=flag, expected="a name or pattern that fits something", got=wanted,
                      todo=f"names are, among {len(names)}: {', '.join(close)}")


__all__ = ["ALL", "Selection", "choose_blocks", "matches", "select"]
