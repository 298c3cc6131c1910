"""``s2a-edge pack --list-features`` and ``--list-blocks``: what can be chosen from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_edge.cli.output import Output, table

if TYPE_CHECKING:
    from s2a_edge.pack.capture import Candidate


def show_features(
    output: Output, source: str, shape: tuple[int, ...] | None, weights: Path | None
) -> None:
    """Shows the values of an ONNX graph that features can be cut at."""
    from s2a_edge.pack.capture import open_source

    candidates: list[Candidate] = open_source(
        source, input_shape=shape, weights=weights
    ).candidates()
    rows = table("Values to cut at, the likeliest first", ("--features", "shape", "--pool"))
    for candidate in candidates:
        dims = "x".join(map(str, candidate.shape[1:]))
        rows.add_row(candidate.name, dims, " or ".join(candidate.pools))
    output.show(rows)
    output.result(candidates)


def show_blocks(output: Output, source: str, **options: Any) -> None:
    """Shows the blocks of a backbone; ``options`` are those of its capture."""
    from s2a_edge.pack.capture import open_source
    from s2a_edge.pack.network import list_blocks

    blocks = list_blocks(open_source(source, **options))
    rows = table("Blocks, from the input to the features", ("--blocks", "output", "residual"))
    for block in blocks:
        rows.add_row(block.name, "x".join(map(str, block.shape)), "yes" if block.residual else "no")
    output.show(rows)
    output.result(blocks)
