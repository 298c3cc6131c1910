"""Which blocks and modules train."""

from __future__ import annotations

import pytest

from s2a_edge.pack.adapt import Adapted, Tuning
from s2a_edge.pack.blocks import Block
from s2a_edge.pack.selection import choose_blocks, matches
from s2a_edge.spec.errors import SourceError, UsageError
from tests.pack.compiled import adapted, compiled

BLOCKS = adapted("tiny_resnet").blocks
NAMES = [b.name for b in BLOCKS]


def _chosen(wanted: str, found: tuple[Block, ...] = BLOCKS) -> list[str]:
    return [b.name for b in choose_blocks(found, wanted)]


@pytest.mark.parametrize(("wanted", "expected"), [
    ("all", NAMES), ("last:1", NAMES[-1:]), ("last:3", NAMES), ("first:2", NAMES[:2]),
    ("every:1", NAMES), ("every:2", [NAMES[0], NAMES[2]]), ("every:3", NAMES[2:]),
    ("layer2", ["layer2"]), ("layer3,layer1", ["layer1", "layer3"]), ("layer[13]", NAMES[::2]),
])
def test_blocks_are_counted_or_named(wanted: str, expected: list[str]) -> None:
    assert _chosen(wanted) == expected


@pytest.mark.parametrize("wanted", ["last:0", "last:4", "every:0", "nothing", "lay", "layer2("])
def test_what_fits_no_block_is_refused(wanted: str) -> None:
    with pytest.raises(UsageError):
        choose_blocks(BLOCKS, wanted)


def test_a_name_that_fits_nothing_is_answered_with_names() -> None:
    with pytest.raises(UsageError, match="layer1"):
        choose_blocks(BLOCKS, "layer9")


def test_some_blocks_of_a_backbone_without_any() -> None:
    with pytest.raises(SourceError, match="--target-modules"):
        choose_blocks((), "last:1")
    assert choose_blocks((), "all") == ()


@pytest.mark.parametrize(("name", "wanted", "expected"), [
    ("blocks.0.attn.qkv", "qkv", True), ("blocks.0.attn.qkv", "kv", False),
    ("blocks.0.attn.qkv", "attn.qkv,fc1", True), ("blocks.0.attn.qkv", "attn", True),
    ("blocks.0.attn.qkv", "blocks.0", True), ("blocks.10.fc", "blocks.1", False),
    ("blocks.0.mlp.fc1", "attn, mlp.fc1", True), ("blocks.0.mlp.fc1", r".*\.fc\d", True),
    ("blocks.0.mlp.fc1", r"blocks\.[1-3]", False), ("blocks.2.mlp.fc1", r"blocks\.[1-3]", True),
])
def test_names_match_as_in_peft_and_what_is_inside_them_too(name: str, wanted: str,
                                                            expected: bool) -> None:
    assert matches(name, wanted) is expected


def _modules(made: Adapted) -> set[str]:
    return {t.module for t in made.trainables if t.module != "head"}


def test_frozen_blocks_get_no_adapter_at_all() -> None:
    made = adapted("tiny_vit", tuning=Tuning(("bias", "lrp", "lsb"), blocks="last:1"))
    modules = _modules(made)
    assert not any(m.startswith("blocks.0") for m in modules) and "patch" not in modules
    assert {"blocks.1.lrp", "blocks.1.lsb", "blocks.1.attn.qkv", "norm"} <= modules


def test_between_chosen_blocks_the_others_stay_frozen() -> None:
    modules = _modules(adapted("tiny_resnet", tuning=Tuning(("bias",), blocks="layer1,layer3")))
    assert {m.partition(".")[0] for m in modules} == {"layer1", "layer3"}


def test_target_modules_choose_biases() -> None:
    modules = _modules(adapted("tiny_vit", tuning=Tuning(("bias",), modules="qkv,fc1")))
    assert modules == {f"blocks.{i}.{m}" for i in (0, 1) for m in ("attn.qkv", "fc1")}
    with pytest.raises(UsageError, match="--target-modules"):
        adapted("tiny_vit", tuning=Tuning(("bias",), modules="query"))


def test_nothing_is_saved_below_the_lowest_chosen_block() -> None:
    whole, half = (compiled("tiny_vit", adapters=("bias", "lrp", "lsb"), blocks=blocks)
                   for blocks in ("all", "last:1"))
    saved = half.steps[4].saved
    assert saved and not any(s.module.startswith(("patch", "blocks.0")) for s in saved)
    below = [s for s in whole.steps[4].saved if s.module.startswith("blocks.0")]
    assert below
    first = half.steps[4].model.graph
    backward = [n for n in first if any(v.metadata_props.get("s2a.kind") == "gradients"
                                        for v in n.outputs)]
    assert not any(n.metadata_props["s2a.module"].startswith(("patch", "blocks.0"))
                   for n in backward)
