"""What an adapter is: a way to make a frozen backbone tunable."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.adapters.workbench import Workbench
from s2a_edge.pack.blocks import Block


@dataclass(frozen=True)
class AdapterSizes:
    """The numbers that adapters are made with.

    Attributes:
        rank: inner width of low-rank prompts, side branches and LoRA.
        reduce: how many channels a side branch averages into one.
        alpha: LoRA's update is scaled by alpha / rank.
    """

    rank: int = 4
    reduce: int = 8
    alpha: float = 8.0


class Adapter:
    """Does nothing; an adapter overrides what it needs.

    The workbench walks the backbone once. For each node that may train, ``exchange`` comes before
    the copy and ``behind`` after it; ``beside`` comes at the end of each chosen block.
    """

    def __init__(self, bench: Workbench, sizes: AdapterSizes) -> None:
        self.bench = bench
        self.sizes = sizes

    def exchange(self, node: ir.Node, inputs: list[ir.Value | None]) -> None:
        """May put trainables in the place of frozen operands, in ``inputs``."""

    def behind(self, node: ir.Node, x: ir.Value | None, y: ir.Value) -> ir.Value:
        """What readers of the node's first output see.

        Args:
            node: in the backbone.
            x: its first operand in the adapted graph.
            y: its first output in the adapted graph.
        """
        return y

    def beside(self, block: Block, x: ir.Value, y: ir.Value) -> ir.Value:
        """What readers of the block's output see.

        Args:
            block: in the backbone.
            x: its input in the adapted graph.
            y: its output in the adapted graph.
        """
        return y
