"""Choosing the bits of every saved value within a number of bytes.

The sum of the squared gradient errors is minimised (``sensitivity``), as a multiple-choice
knapsack (``knapsack``). A group is one saved value, with those that are tied to it; of an attention
block, whose probabilities P may be recomputed from q and k, the three together: whether errors of q
and k also go through P depends on what is chosen for P. What is recomputed in any case, such as the
hidden values of a side branch, takes no bytes, and the errors of what it comes from go through it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from s2a_edge.pack.allocation.knapsack import Choice, Solution, solve
from s2a_edge.pack.allocation.options import RECOMPUTE, Codecs, bits_of, ties_of
from s2a_edge.pack.allocation.sensitivity import Sensitivity
from s2a_edge.pack.codecs import Codec
from s2a_edge.pack.precision import Attention, Precision
from s2a_edge.pack.saving import RECOMPUTED, SavedValue
from s2a_edge.spec.units import format_bytes

# What has nothing to choose (masks, indices, statistics) is kept as at any fixed setting.
_REST = Precision(4, "store")


@dataclass(frozen=True)
class Why:
    """What is known of one saved value.

    Attributes:
        sensitivity: relative gradient error that it causes alone, by bits.
        reason: why it got its bits.
    """

    sensitivity: Mapping[int, float]
    reason: str


@dataclass(frozen=True)
class Allocation:
    """A policy: bits by the key of the saved value.

    Attributes:
        bits: chosen bits; ``RECOMPUTE`` for probabilities that are computed again.
        codecs: what keeps a value in so many bits.
        capacity_bytes: what was allowed.
        stored_bytes: of all saved values.
        squared_error: predicted squared relative error of the gradients.
        bound: the least that any choice within the same bytes could have.
        why: by key.
    """

    bits: Mapping[str, int]
    codecs: Codecs = field(repr=False)
    capacity_bytes: int
    stored_bytes: int
    squared_error: float
    bound: float
    why: Mapping[str, Why] = field(repr=False)

    def codec(self, kind: str, shape: tuple[int, ...], *, recomputes: bool = False, key: str = "",
              ) -> Codec:
        """See :class:`~s2a_edge.pack.precision.Policy`."""
        if key not in self.bits:
            return _REST.codec(kind, shape)
        return self.codecs.codec(key, kind, self.bits[key], shape)

    def recompute_probabilities(self, tokens: int, width: int, *, key: str = "") -> bool:
        """See :class:`~s2a_edge.pack.precision.Policy`."""
        return self.bits.get(key) == RECOMPUTE


@dataclass(frozen=True)
class _Pick:
    """One choice of a group: bits by the first of tied keys."""

    bits: tuple[tuple[str, int], ...]
    choice: Choice


class Allocator:
    """Allocations of one training step, for any number of bytes.

    Args:
        sensitivity: what was measured.
        saved: the saved values of the graph that the bytes are counted in.
        leaves: of recomputable probabilities, the keys of what they come from.
        batch: samples of that graph.
        attention: whether probabilities must be stored or recomputed.
    """

    def __init__(self, sensitivity: Sensitivity, saved: Sequence[SavedValue],
                 leaves: Mapping[str, tuple[str, ...]], batch: int,
                 attention: Attention = "auto") -> None:
        self._sensitivity = sensitivity
        self.batch = batch
        self._attention = attention
        self._saved = {s.key: s for s in saved}
        self._ties = {tie[0]: tie for tie in ties_of(saved)}
        again = {s.key for s in saved if s.codec == RECOMPUTED}
        self._followed = {key for p in again for key in leaves.get(p, ())}
        leaves = {p: ls for p, ls in leaves.items() if p not in again}
        free = {key for key, _ in sensitivity.alone} - again
        tied = {key for first in free for key in self._ties[first]}
        self._fixed_bytes = sum(_REST.codec(s.kind, s.shape).stored_bytes(s.shape)
                                for s in saved if s.key not in tied and s.key not in again)
        shared = _in_several(leaves.values())
        self._blocks = {p: ls for p, ls in leaves.items() if p in free and ls
                        and not shared.intersection(ls) and free.issuperset(ls)}
        inside = {key for p, ls in self._blocks.items() for key in (p, *ls)}
        self._groups = [self._block(p, ls) for p, ls in self._blocks.items()]
        self._groups += [_front(self._alone(key)) for key in self._saved
                         if key in free and key not in inside]

    @property
    def smallest_bytes(self) -> int:
        """The fewest bytes that any allocation takes."""
        return self._fixed_bytes + sum(min(p.choice.size for p in g) for g in self._groups)

    @property
    def largest_bytes(self) -> int:
        """The bytes of the allocation without error."""
        return self._fixed_bytes + sum(max(p.choice.size for p in g) for g in self._groups)

    def within(self, capacity_bytes: int) -> Allocation | None:
        """The allocation of least error in at most so many bytes; None if there is none."""
        found = solve([[p.choice for p in g] for g in self._groups],
                      capacity_bytes - self._fixed_bytes)
        return None if found is None else self._allocation(found, capacity_bytes)

    def _allocation(self, found: Solution, capacity_bytes: int) -> Allocation:
        chosen = {key: n for group, index in zip(self._groups, found.chosen, strict=True)
                  for key, n in group[index].bits}
        why: dict[str, Why] = {}
        for key in chosen:
            reason = self._why(key, chosen, found.cost)
            why.update(dict.fromkeys(self._ties[key], reason))
        bits = {key: n for first, n in chosen.items() for key in self._ties[first]}
        return Allocation(bits, self._sensitivity.codecs, capacity_bytes,
                          self._fixed_bytes + found.size, found.cost, found.bound, why)

    def _why(self, key: str, chosen: Mapping[str, int], total: float) -> Why:
        followed = any(key in leaves and chosen[p] == RECOMPUTE
                       for p, leaves in self._blocks.items())
        widths = bits_of(self._saved[key])
        squared = {n: self._cost(key, n, followed=followed) for n in widths}
        bits = chosen[key]
        finer = next((n for n in widths if n > bits and squared[n] < squared.get(bits, 0.0)), None)
        if bits == RECOMPUTE:
            reason = "computed again from q and k: no bytes, and their errors are counted there"
        elif finer is None:
            reason = "no error"
        else:
            more = (self._size(key, finer) - self._size(key, bits)) // self.batch
            less = (squared[bits] - squared[finer]) / total if total > 0 else 0.0
            reason = (f"{finer} bits would take {format_bytes(more)} more a sample and remove "
                      f"{less:.2%} of the squared error")
        return Why({n: squared[n] ** 0.5 for n in widths}, reason)

    def _size(self, key: str, bits: int) -> int:
        total = 0
        for tied in self._ties[key]:
            saved = self._saved[tied]
            codec = self._sensitivity.codecs.codec(tied, saved.kind, bits, saved.shape)
            total += codec.stored_bytes(saved.shape)
        return total

    def _cost(self, key: str, bits: int, *, followed: bool = False) -> float:
        followed = followed or key in self._followed
        table = self._sensitivity.followed if followed else self._sensitivity.alone
        return 0.0 if bits == 32 else self._sensitivity.relative(table[key, bits])

    def _alone(self, key: str, *, followed: bool = False) -> list[_Pick]:
        return [_Pick(((key, bits),), Choice(self._size(key, bits),
                                             self._cost(key, bits, followed=followed)))
                for bits in bits_of(self._saved[key])]

    def _block(self, p: str, leaves: tuple[str, ...]) -> list[_Pick]:
        """P stored and its leaves alone, or P recomputed from what is left of its leaves."""
        stored = _together([self._alone(key) for key in (p, *leaves)])
        followed = _together([self._alone(key, followed=True) for key in leaves])
        again = [_Pick((*pick.bits, (p, RECOMPUTE)), pick.choice) for pick in followed]
        return _front([*(stored if self._attention != "recompute" else []),
                       *(again if self._attention != "store" else [])])


def _in_several(groups: Iterable[tuple[str, ...]]) -> set[str]:
    """Keys that are in more than one group."""
    listed = [key for group in groups for key in group]
    return {key for key in listed if listed.count(key) > 1}


def _together(parts: Sequence[Sequence[_Pick]]) -> list[_Pick]:
    """Every combination of one pick from each part, dominated ones left out."""
    return _front([
        _Pick(tuple(itertools.chain.from_iterable(p.bits for p in picks)),
              Choice(sum(p.choice.size for p in picks), sum(p.choice.cost for p in picks)))
        for picks in itertools.product(*parts)])


def _front(picks: Iterable[_Pick]) -> list[_Pick]:
    """Those that no other beats in both size and cost, the smallest first."""
    kept: list[_Pick] = []
    for pick in sorted(picks, key=lambda p: (p.choice.size, p.choice.cost)):
        if not kept or pick.choice.cost < kept[-1].choice.cost:
            kept.append(pick)
    return kept


__all__ = ["Allocation", "Allocator", "Why"]
