"""Saved values: encoded in the forward, decoded right before their use in the backward.

A forward value that several rules declare is kept once. Decoded values live until their last
use; a use far from the previous one decodes again, since keeping the decoded form alive would
give back what the code had saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs import SCALED, Codec
from s2a_edge.pack.graph import KIND_KEY, nbytes_of, shape_of
from s2a_edge.pack.ops.linear import at_hand
from s2a_edge.pack.precision import Policy, Precision, is_statistic
from s2a_edge.pack.recompute import Recompute, way_back

RECOMPUTED = "recompute"
"""Stands where the name of a codec would, for a value that is computed again."""

# Nodes between two uses within which the decoded value is kept: about one attention block.
_NEAR_NODES = 64
_EXACT = Precision(32, "store")


@dataclass(frozen=True)
class SavedValue:
    """What is kept of one forward value.

    Attributes:
        key: names it alike in the graphs of all micro-batches and at all precisions:
            ``module:kind:n``, the n-th of its kind there.
        value: its name in the graph.
        module: where it arises.
        kind: what it is to the backward (``rule.Forward.save``).
        codec: the codec's name, or ``recompute``.
        bits: nominal bits per element; 0 when recomputed.
        shape: shape of the forward value.
        stored_bytes: bytes of the stored tensors, scales included.
    """

    key: str
    value: str
    module: str
    kind: str
    codec: str
    bits: float
    shape: tuple[int, ...]
    stored_bytes: int


def saved_key(module: str, kind: str, number: int) -> str:
    """The key of the ``number``-th value of ``kind`` that ``module`` saves."""
    return f"{module}:{kind}:{number}"


def _form(kind: str) -> str:
    """What a code of ``kind`` can be decoded to; one value may be wanted in several forms.

    A derivative or a mask is no longer the value. All other kinds decode to the value itself, so
    that whoever comes second shares the code of the first; only ``exact`` shares with none.
    """
    family = kind.partition(":")[0]
    return kind if family in ("derivative", "mask", "index", "exact") else ""


@dataclass
class _Record:
    info: SavedValue
    value: ir.Value
    decode: Callable[[], ir.Value]
    decoded: ir.Value | None = None
    used_at: int = 0


# Called with the graph, the key, the forward value and the decoded one; returns what is read.
Tap = Callable[[GraphBuilder, str, ir.Value, ir.Value], ir.Value]


class SavedValues:
    """The store between forward and backward of one graph under construction.

    Args:
        g: where nodes are appended.
        policy: which codec keeps what.
        tap: sees every value that the backward decodes or recomputes.
        recompute: what may be computed again from other saved values.
    """

    def __init__(self, g: GraphBuilder, policy: Policy, tap: Tap | None = None,
                 recompute: Recompute = "none") -> None:
        self._g = g
        self._recompute = recompute
        self._made_again: dict[int, tuple[ir.Value, int]] = {}
        self._policy = policy
        self._tap = tap
        self._declared: Counter[tuple[str, str]] = Counter()
        self._records: dict[tuple[int, str], _Record] = {}
        # The ids above stay valid only while the values live.
        self._alive: list[ir.Value] = []
        self._kept: dict[int, ir.Value] = {}
        self.recompute_leaves: set[int] = set()
        # Which part of the micro-batch the node at hand is for; keys of all parts are the same.
        self.part = ""
        self.recomputations: dict[int, Callable[[], ir.Value]] = {}

    def declare(self, value: ir.Value, kind: str, *, exact: bool = False) -> tuple[int, str]:
        """Keeps ``value``, uncompressed if it is to be ``exact``; returns the key to recall it."""
        key = (id(value), _form(kind))
        if key in self._records:
            return key
        # What can be computed again can be so as a value; masks and derivatives are kept.
        again = self.recomputations.get(id(value)) if key[1] == "" else None
        if again is None and not exact:
            again = self._way_back(value, kind)
        group = (f"{self._g.module}:{kind}", self.part)
        name = saved_key(self._g.module, kind, self._declared[group])
        self._declared[group] += 1
        self._records[key] = self._recomputed(name, value, kind, again) if again is not None \
            else self._encoded(name, value, kind, exact=exact)
        self._alive.append(value)
        return key

    def _recomputed(self, key: str, value: ir.Value, kind: str, again: Callable[[], ir.Value],
                    ) -> _Record:
        info = SavedValue(key, value.name or "", self._g.module, kind, RECOMPUTED, 0.0,
                          shape_of(value), 0)
        return _Record(info, value, again)

    def _way_back(self, value: ir.Value, kind: str) -> Callable[[], ir.Value] | None:
        """How ``value`` can be computed from other saved ones; a derivative goes on from there."""
        family = kind.partition(":")[0]
        if family not in ("activation", "derivative") or is_statistic(shape_of(value)):
            return None
        nodes = way_back(value, self._is_kept, self._recompute)
        if nodes is None:
            return None
        if family == "activation":
            return lambda: self._again(nodes, value)
        codec = self._policy.codec(kind, shape_of(value), recomputes=True)
        return lambda: codec.decode(self._g, codec.encode(self._g, self._again(nodes, value)),
                                    shape_of(value))

    def _is_kept(self, value: ir.Value) -> bool:
        return at_hand(value) or (id(value), "") in self._records

    def _again(self, nodes: Sequence[ir.Node], wanted: ir.Value) -> ir.Value:
        """Runs copies of forward ``nodes``; what they share with a copy nearby is not run twice."""
        made: dict[ir.Value, ir.Value] = {}
        for node in nodes:
            nearby = [self._nearby(v) for v in node.outputs]
            if None not in nearby:
                made.update((v, n) for v, n in zip(node.outputs, nearby, strict=True) if n)
                continue
            operands = [v if v is None or at_hand(v) else made[v] if v in made
                        else self.recall((id(v), "")) for v in node.inputs]
            outputs = self._g.repeat(node, operands)
            made.update(zip(node.outputs, outputs, strict=True))
        for value in made:
            self._made_again[id(value)] = (made[value], len(self._g.nodes))
        return made[wanted]

    def _nearby(self, value: ir.Value) -> ir.Value | None:
        """The copy of a forward value that was made a short while ago."""
        copy, made_at = self._made_again.get(id(value), (None, 0))
        return copy if len(self._g.nodes) - made_at <= _NEAR_NODES else None

    def _encoded(self, key: str, value: ir.Value, kind: str, *, exact: bool) -> _Record:
        shape = shape_of(value)
        policy = _EXACT if exact else self._policy
        codec: Codec = policy.codec(
            kind, shape, recomputes=id(value) in self.recompute_leaves, key=key)
        scaled = isinstance(codec, SCALED)
        with self._g.float32(scaled):
            stored = codec.encode(self._g, value)
        size = 0
        for part in stored:
            part.metadata_props[KIND_KEY] = "saved"
            if id(part) not in self._kept:  # uncompressed, two forms of a value are one tensor
                self._kept[id(part)] = part
                size += nbytes_of(part)
        info = SavedValue(key, value.name or "", self._g.module, kind, codec.name, codec.bits,
                          shape, size)

        def decode() -> ir.Value:
            with self._g.float32(scaled):
                return codec.decode(self._g, stored, shape)

        return _Record(info, value, decode)

    def recall(self, key: tuple[int, str]) -> ir.Value:
        """The decoded value, decoded here if it is not at hand."""
        record = self._records[key]
        now = len(self._g.nodes)
        if record.decoded is None or now - record.used_at > _NEAR_NODES:
            kind, self._g.kind = self._g.kind, "working"
            record.decoded = record.decode()
            if self._tap is not None:
                record.decoded = self._tap(self._g, record.info.key, record.value,
                                           record.decoded)
            self._g.kind = kind
        record.used_at = len(self._g.nodes)
        return record.decoded

    def summary(self) -> tuple[SavedValue, ...]:
        """All that is kept, in the order of the forward."""
        return tuple(record.info for record in self._records.values())
