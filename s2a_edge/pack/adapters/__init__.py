"""What can train besides the head; an adapter is one file.

``bias``, ``lrp`` and ``lsb`` are S2A's: they need nothing or little saved. ``lora`` and ``full``
are here to be compared with, inside the same engine.
"""

from __future__ import annotations

from s2a_edge.pack.adapters.adapter import Adapter, AdapterSizes
from s2a_edge.pack.adapters.bias import Bias
from s2a_edge.pack.adapters.full import Full
from s2a_edge.pack.adapters.lite_side_branch import LiteSideBranch
from s2a_edge.pack.adapters.lora import Lora
from s2a_edge.pack.adapters.low_rank_prompt import LowRankPrompt
from s2a_edge.pack.adapters.workbench import Trainable, Workbench

# In the order in which they act on a node or block; ``head`` is implied and made elsewhere.
KINDS: dict[str, type[Adapter]] = {
    "full": Full, "lora": Lora, "bias": Bias, "lsb": LiteSideBranch, "lrp": LowRankPrompt,
}
ADAPTERS = (*KINDS, "head")
# These stand at the ends of blocks, so the backbone must have some.
ON_BLOCKS = frozenset({"lsb", "lrp"})

__all__ = ["ADAPTERS", "KINDS", "ON_BLOCKS", "Adapter", "AdapterSizes", "Trainable", "Workbench"]
