"""The blocks of a backbone, found in its graph and named by its modules.

A block is a residual connection, or the consecutive ones of one module (attention and MLP of a
transformer block), with what the module computes right before and behind. A module that is named
like such a block but has no residual connection (the first of a MobileNet stage) is a block too.
Networks without residual connections have those that fork and join (Inception, DenseNet), and
plain chains (VGG) the stages between changes of resolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile

import onnx_ir as ir

from s2a_edge.pack.graph import module_of, shape_of
from s2a_edge.pack.trunk import Span, is_weighted, trunk

# A module with more residual connections than these is no block: its name says nothing. Modules
# of a list have a number in their names and may be built of many parts (MaxViT: five).
_MOST_HALVES, _MOST_NUMBERED = 2, 8


@dataclass(frozen=True)
class Block:
    """A part of the trunk.

    Attributes:
        name: of its module, or ``block<i>`` and ``stage<i>`` where no module has a name.
        input: the trunk value that it reads.
        output: the trunk value that it computes.
        nodes: in execution order.
        residual: whether it adds its input, or a short-cut of it, to its output.
    """

    name: str
    input: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]
    residual: bool


def find_blocks(graph: Iterable[ir.Node], data_inputs: Sequence[ir.Value], features: ir.Value,
                ) -> tuple[Block, ...]:
    """The blocks of a normalized backbone, from the input to the features; none overlap.

    Empty for a network without structure to find them by, such as a perceptron: its features are
    [N, D] throughout. Only values [N, ..., C] of at least three axes are ends of blocks.
    """
    spans = trunk(list(graph), data_inputs, features)
    for chosen in ([s.residual for s in spans], [s.forks for s in spans]):
        blocks = _named(spans, chosen)
        if blocks:
            return blocks
    return _stages(spans)


def _named(spans: Sequence[Span], chosen: Sequence[bool]) -> tuple[Block, ...]:
    """Runs of spans that one module computes, and its like; one for each span without a name."""
    found = [_module(span) if take and _is_map(span.start) and _is_map(span.end) else None
             for span, take in zip(spans, chosen, strict=True)]
    told = {name for name in found if name and _tells(name, found)}
    patterns = {_pattern(name) for name in told}
    rest = [name.split(".") for name in found if name is not None and name not in told]
    stem = "".join(f"{part}." for part in _shared(rest) if part)
    labels: list[str | None] = []
    untold = 0
    for span, name in zip(spans, found, strict=True):
        if name is None or name in told:
            labels.append(name or (_inside(span, told, patterns) if _is_map(span.start)
                                   and _is_map(span.end) else None))
            continue
        labels.append(f"{stem}block{untold}")
        untold += 1
    blocks: list[Block] = []
    for label, run in groupby(zip(spans, labels, strict=True), key=lambda item: item[1]):
        members = [span for span, _ in run]
        block = _block(label or "", members, residual=any(s.residual for s in members))
        if label and any(map(is_weighted, block.nodes)):
            blocks.append(block)
    return _distinct(blocks if told else _paired(blocks))


def _tells(name: str, names: Sequence[str | None]) -> bool:
    """Whether ``name`` is that of one block, not of what holds several."""
    numbered = any(part.isdigit() for part in name.split("."))
    holds = any(other is not None and other.startswith(f"{name}.") for other in names)
    return not holds and names.count(name) <= (_MOST_NUMBERED if numbered else _MOST_HALVES)


def _block(name: str, spans: Sequence[Span], *, residual: bool) -> Block:
    nodes = tuple(node for span in spans for node in span.nodes)
    return Block(name, spans[0].start, spans[-1].end, nodes, residual)


def _module(span: Span) -> str:
    """The path that the modules of its weights share, up to the last number in it."""
    shared = _shared(module_of(n).split(".") for n in span.nodes if is_weighted(n))
    numbers = [i for i, part in enumerate(shared) if part.isdigit()]
    return ".".join(shared[: numbers[-1] + 1] if numbers else shared)


def _shared(paths: Iterable[Sequence[str]]) -> list[str]:
    """The components that all paths begin with."""
    columns = zip(*paths, strict=False)
    return [column[0] for column in takewhile(lambda c: len(set(c)) == 1, columns)]


def _pattern(name: str) -> tuple[str, ...]:
    return tuple("*" if part.isdigit() else part for part in name.split("."))


def _inside(span: Span, names: set[str], patterns: set[tuple[str, ...]]) -> str | None:
    """The block to whose module all of a span belongs, or a module that is named like a block."""
    shared = _shared(module_of(n).split(".") for n in span.nodes)
    for depth in range(len(shared), 0, -1):
        name = ".".join(shared[:depth])
        if name in names or ("*" in _pattern(name) and _pattern(name) in patterns):
            return name
    return None


def _is_map(value: ir.Value) -> bool:
    """Whether ``value`` has tokens or positions: [N, T, C], [N, C, H, W] and the like."""
    return len(shape_of(value)) >= 3


def _distinct(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """A module that stands at two places gives two blocks; the second gets a number."""
    seen: dict[str, int] = {}
    named: list[Block] = []
    for block in blocks:
        count = seen[block.name] = seen.get(block.name, 0) + 1
        named.append(block if count == 1 else replace(block, name=f"{block.name}_{count}"))
    return tuple(named)


def _paired(blocks: list[Block]) -> list[Block]:
    """Attention and what follows it, where no name says that they belong together."""
    attentive = [any(n.op_type == "Softmax" for n in b.nodes) for b in blocks]
    if not blocks or len(blocks) % 2 or attentive != [True, False] * (len(blocks) // 2):
        return blocks
    return [Block(f"{a.name.rpartition('block')[0]}block{i}", a.input, b.output,
                  (*a.nodes, *b.nodes), residual=True)
            for i, (a, b) in enumerate(zip(blocks[::2], blocks[1::2], strict=True))]


def _stages(spans: Sequence[Span]) -> tuple[Block, ...]:
    """Runs of the trunk at one resolution; what changes it without a weight lies between them."""
    found: list[Block] = []
    run: list[Span] = []

    def close() -> None:
        if any(is_weighted(n) for span in run for n in span.nodes):
            found.append(_block(f"stage{len(found)}", run, residual=False))
        run.clear()

    for span in spans:
        if not _is_map(span.end) or not _is_map(span.start):
            close()
            continue
        weighted = any(map(is_weighted, span.nodes))
        if _resolution(span.start) != _resolution(span.end):
            close()
            if not weighted:
                continue
        if run or weighted:
            run.append(span)
    close()
    return tuple(found)


def _resolution(value: ir.Value) -> tuple[int, ...]:
    shape = shape_of(value)
    return shape[2:] if len(shape) > 3 else shape[1:2]


__all__ = ["Block", "find_blocks"]
