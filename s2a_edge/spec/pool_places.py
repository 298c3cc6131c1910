"""Whether the places that a graph names in the pool are safe to write to.

The runtime writes there what a graph computes, wherever the names say. So places lie inside of the
planned pool, and nothing is written over a value that is still read: a kernel that checked its
indices would go on with others. Only elementwise operators may write over an operand, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple, NoReturn

from s2a_edge.spec.cpu_kernels import ALIASES, ELEMENTWISE, IN_PLACE
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.onnx_facts import ValueFacts
from s2a_edge.spec.onnx_nodes import NodePorts
from s2a_edge.spec.pool_ports import POOL_ALIGNMENT_BYTES, lies_in_pool, pool_offset

# Types of values in the pool, and the bytes of an element.
_ITEM_BYTES = {"bool": 1, "float16": 2, "float32": 4, "int8": 1, "int32": 4, "int64": 8,
               "uint8": 1}  # fmt: skip


class Place(NamedTuple):
    """Bytes [start, stop) of the pool."""

    start: int
    stop: int

    def meets(self, other: Place) -> bool:
        """Whether both have bytes in common."""
        return self.start < other.stop and other.start < self.stop


def places_within(file: str, values: Iterable[ValueFacts], pool_bytes: int) -> dict[str, Place]:
    """Where the outputs of a graph that are named by places lie.

    Args:
        file: the graph's file, for errors.
        values: outputs whose names say a place (:mod:`s2a_edge.spec.pool_ports`).
        pool_bytes: size of the planned pool.

    Raises:
        BundleError: a size is unknown, or a place is not aligned or not inside of the pool.
    """
    places = {}
    for value in values:
        start, size_bytes = pool_offset(value.name) or 0, _size_bytes(value)
        if not lies_in_pool(start, size_bytes, pool_bytes):
            _refuse(file, f"a tensor of known size at a multiple of {POOL_ALIGNMENT_BYTES} bytes, "
                    f"within the pool of {pool_bytes} bytes", str(value))
        places[value.name] = Place(start, start + size_bytes)
    return places


def _size_bytes(value: ValueFacts) -> int:
    """Bytes of a value in the pool; 0 where they do not follow from its type and shape."""
    lengths = [n for n in value.shape or () if isinstance(n, int) and n >= 0]
    if value.shape is None or len(lengths) != len(value.shape):
        return 0
    return math.prod(lengths) * _ITEM_BYTES.get(value.dtype, 0)


def check_lifetimes(file: str, places: dict[str, Place], nodes: Iterable[NodePorts],
                    given: Collection[str], outputs: Collection[str] = ()) -> None:
    """Refuses a graph in which a value in the pool is overwritten before its last reader ran.

    Args:
        file: the graph's file, for errors.
        places: of :func:`places_within`.
        nodes: in the order of the file, in which the runtime executes them.
        given: names of inputs and initializers.
        outputs: names of outputs; one that is not in the pool has memory of its own, also where it
            would be a view.

    Raises:
        BundleError: it is, or the nodes are in no order in which they can run.
    """
    replay = _Replay(file, places, set(given), frozenset(outputs).union(places))
    for node in nodes:
        replay.run(node)
    missing = sorted(places.keys() - replay.known)
    if missing:
        _refuse(file, "a node that writes each place", f"none for {missing[0]}")


class _Replay:
    """What lies in the pool while a graph runs, node after node."""

    def __init__(self, file: str, places: dict[str, Place], known: set[str],
                 outputs: frozenset[str]) -> None:
        self.file, self.places, self.known, self.outputs = file, places, known, outputs
        self._views: dict[str, frozenset[str]] = {}
        """Values that may share memory of the pool -> those whose memory it is."""
        self._whole: dict[str, Place] = {}
        """What was written and not overwritten so far."""
        self._gone: set[str] = set()

    def run(self, node: NodePorts) -> None:
        for name in node.inputs:
            if name and name not in self.known:
                _refuse(self.file, "nodes in an order in which they can run",
                        f"{node.op_type} reads {name[:100]} before it is there")
            if not self._gone.isdisjoint(self._owners(name)):
                _refuse(self.file, "places that are free when they are written",
                        f"{node.op_type} reads {name[:100]}, which was overwritten")
        for name in filter(None, node.outputs):
            if name in self.known:
                _refuse(self.file, "values that are written once", name[:100])
            if name in self.places:
                self._write(node, name, self.places[name])
        self.known.update(node.outputs)
        if _may_share(node):
            owners = frozenset[str]().union(*map(self._owners, node.inputs))
            if owners:
                self._views |= {name: owners for name in node.outputs if name not in self.outputs}

    def _owners(self, name: str) -> frozenset[str]:
        """The values in the pool whose memory a value may be."""
        return frozenset((name,)) if name in self.places else self._views.get(name, frozenset())

    def _write(self, node: NodePorts, name: str, place: Place) -> None:
        used = frozenset[str]().union(*map(self._owners, node.inputs), node.outputs)
        for other, taken in [item for item in self._whole.items() if item[1].meets(place)]:
            # An operand that is overwritten exactly may not be read a second time by this node in
            # another way; it is elementwise in all operands, or in the first alone.
            if other in used and not (taken == place and self._may_overwrite(node, other)):
                _refuse(self.file, "a place apart from what the node reads and writes",
                        f"{node.op_type} writes {name} over {other}")
            del self._whole[other]
            self._gone.add(other)
        self._whole[name] = place

    def _may_overwrite(self, node: NodePorts, operand: str) -> bool:
        if node.domain:
            return False
        if node.op_type in ELEMENTWISE:
            return len(node.inputs) <= 2
        return node.op_type in IN_PLACE and not any(
            operand in self._owners(name) for name in node.inputs[1:])


def _may_share(node: NodePorts) -> bool:
    """Whether outputs may be the memory of operands: views, and what holds tensors as they are."""
    return not node.domain and (node.op_type in ALIASES or node.op_type.startswith("Optional")
                                or "Sequence" in node.op_type or node.op_type == "Dropout")


def _refuse(file: str, expected: str, got: str) -> NoReturn:
    todo = "use a bundle that `s2a-edge pack` of this version made"
    raise BundleError(where=file, expected=expected, got=ascii(got[:200]), todo=todo)


__all__ = ["Place", "check_lifetimes", "places_within"]
