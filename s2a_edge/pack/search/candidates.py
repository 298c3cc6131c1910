"""What ``--auto`` chooses from: one row of a list for each choice.

A candidate is a micro-batch, a way to keep saved values, a storage of frozen weights and the blocks
that train. What a user has fixed has one row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.search.options import SearchOptions
from s2a_edge.spec.frozen_weights import FrozenStorage

# Ways to keep saved values, each a row: fields of PackOptions and their values; the finest first.
# Attention "auto" stores probabilities or computes them again, whatever takes fewer bytes.
WAYS: tuple[Mapping[str, Any], ...] = (
    {"bits": 32, "attention": "auto", "recompute": "cheap"},
    {"bits": 32, "attention": "recompute", "recompute": "cheap"},
    {"bits": 32, "attention": "recompute", "recompute": "products"},
    {"bits": 8, "attention": "auto", "recompute": "cheap"},
    {"bits": 8, "attention": "recompute", "recompute": "products"},
    {"bits": 4, "attention": "auto", "recompute": "cheap"},
    {"bits": 4, "attention": "recompute", "recompute": "cheap"},
    {"bits": 4, "attention": "recompute", "recompute": "products"},
    {"bits": 2, "attention": "auto", "recompute": "cheap"},
    {"bits": 2, "attention": "recompute", "recompute": "products"},
)
# Allocations, as shares of the bytes that 4 bits for all would take.
SHARES = (0.75, 0.55, 0.4)
STORAGES: tuple[FrozenStorage, ...] = ("fp32", "fp16", "int8", "int4")


@dataclass(frozen=True)
class Saves:
    """One way to keep saved values.

    Attributes:
        name: for people.
        changes: fields of ``PackOptions`` and their values.
        share: of an allocation, its share of the bytes that 4 bits take; None: fixed bits.
    """

    name: str
    changes: tuple[tuple[str, Any], ...]
    share: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One configuration."""

    micro_batch: int
    saves: Saves
    frozen: FrozenStorage
    blocks: str

    def options(self, base: PackOptions) -> PackOptions:
        """``base`` with this configuration; of an allocation without its bytes."""
        return dataclasses.replace(base, micro_batches=(self.micro_batch,), frozen=self.frozen,
                                   blocks=self.blocks, saved_budget_bytes=None, auto=None,
                                   **dict(self.saves.changes))

    @property
    def flags(self) -> str:
        """The flags of ``pack`` that ask for it; an allocation's bytes are not among them."""
        saves = [f"--{name} {value}" for name, value in self.saves.changes]
        return " ".join([f"--micro-batch {self.micro_batch}", *saves, f"--frozen {self.frozen}",
                         f"--blocks {self.blocks}"])


def micro_batches(base: PackOptions, search: SearchOptions, fixed_batch: int | None,
                  ) -> tuple[int, ...]:
    """Micro-batches in ascending order: divisors of the effective batch, and powers of 2.

    Args:
        base: of the pack.
        search: what is fixed.
        fixed_batch: what the source was exported for, where its batch is not open.
    """
    whole = base.effective_batch
    if "micro_batches" in search.fixed:
        return (max(base.micro_batches),)
    if fixed_batch not in (None, 1):
        assert fixed_batch is not None
        return (fixed_batch,)
    found = {n for n in range(1, whole + 1) if whole % n == 0}
    if base.loss != "output":  # its micro-batches must be full
        found |= {2**k for k in range(whole.bit_length()) if 2**k <= whole}
    return tuple(sorted(found))


def ways_to_save(base: PackOptions, search: SearchOptions) -> tuple[Saves, ...]:
    """Fixed bits for all values, with what is computed again; the finest first."""
    if "bits" in search.fixed and base.bits == "auto":
        return ()
    rows: dict[tuple[tuple[str, Any], ...], None] = {}
    for way in WAYS:
        given = {name: getattr(base, name) if name in search.fixed else value
                 for name, value in way.items()}
        rows.setdefault(tuple(given.items()))
    return tuple(Saves(_words(dict(row)), row) for row in rows)


def _words(way: Mapping[str, Any]) -> str:
    attention = {"store": ", attention stored", "recompute": ", attention computed again"}
    again = {"products": ", products run again", "none": ", nothing computed again"}
    return (f"{way['bits']} bits{attention.get(way['attention'], '')}"
            f"{again.get(way['recompute'], '')}")


def allocations(base: PackOptions, search: SearchOptions) -> tuple[Saves, ...]:
    """Bits for each saved value, within shares of what 4 bits for all take."""
    if "bits" in search.fixed and base.bits != "auto":
        return ()
    shares = (1.0, *SHARES) if "bits" in search.fixed else SHARES
    attention = base.attention if "attention" in search.fixed else "auto"
    changes = ("bits", "auto"), ("attention", attention), ("recompute", base.recompute)
    return tuple(Saves(f"bits by value in {share:.0%} of 4 bits", changes, share)
                 for share in shares)


def storages(base: PackOptions, search: SearchOptions, *, cpu: bool = True,
             ) -> tuple[FrozenStorage, ...]:
    """Storages of frozen weights; 4 bits are decoded by an operator that only the CPU has."""
    if "frozen" in search.fixed:
        return (base.frozen,)
    return STORAGES if cpu else tuple(s for s in STORAGES if s != "int4")


def depths(base: PackOptions, search: SearchOptions, blocks: int) -> tuple[str, ...]:
    """What trains: all blocks, the last half of them, a quarter, down to one."""
    if "blocks" in search.fixed or base.blocks != "all":
        return (base.blocks,)
    found = ["all"]
    while (blocks := blocks // 2) >= 1:
        found.append(f"last:{blocks}")
    return tuple(found)


__all__ = ["Candidate", "Saves", "allocations", "depths", "micro_batches", "storages",
           "ways_to_save"]
