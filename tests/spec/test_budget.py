"""What training needs, against a budget."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.spec.budget import choose_micro_batch, does_not_fit
from s2a_edge.spec.errors import BudgetError, UsageError
from s2a_edge.spec.manifest import (
    BatchGraph,
    Compat,
    Graphs,
    InferGraph,
    InputSpec,
    Manifest,
    OptimizerGraph,
    Preprocessing,
    Recipe,
    Source,
    Task,
    Trainable,
    WeightEntry,
)
from s2a_edge.spec.memory_plan import THREAD_BYTES, Evidence, MemoryKind, MemoryPlan
from s2a_edge.spec.requirement import PIPELINE_BYTES, LineKind, Setting, micro_batches, requirement
from s2a_edge.spec.units import MIB, parse_bytes

PARAM_BYTES = 24_576 * 4
IMAGE_BYTES = 3 * 32 * 32 * 4
WEIGHT_BYTES = 10 * MIB + 4096


def plan(arena_bytes: int) -> MemoryPlan:
    at_peak = {MemoryKind.SAVED: arena_bytes}
    return MemoryPlan(
        arena_bytes,
        arena_bytes,
        arena_bytes,
        "node",
        at_peak,
        arena_bytes,
        5,
        threads=2,
        whole_image_arena_bytes=arena_bytes + 3 * MIB,
        whole_image_thread_bytes=MIB,
    )


def evidence(base_mib: int = 30, session_mib: int = 2, peak_bytes: int = 0) -> Evidence:
    return Evidence(
        machine="a test",
        onnxruntime="1.32.0",
        arena_measured_bytes=1280,
        process_peak_bytes=peak_bytes,
        runtime_base_bytes=base_mib * MIB,
        session_bytes=session_mib * MIB,
        step_ms=1.0,
        n=3,
        gradient_error=None,
    )


def manifest(
    arenas: dict[int, int],
    *,
    eval_arena: int = 4 * MIB,
    eval_batch: int = 2,
    optimizer: str = "adamw",
    bits: int = 4,
    peak_bytes: int = 0,
) -> Manifest:
    """A bundle of a small image model; ``arenas`` maps micro-batches to planned bytes."""
    train = tuple(
        BatchGraph(f"train_b{n}.onnx", n, plan(size), evidence(peak_bytes=peak_bytes))
        for n, size in arenas.items()
    )
    made = Manifest(
        format="s2a-bundle",
        format_version=2,
        created="2026-01-31",
        tool_version="0.1.0",
        versions={},
        source=Source("timm", "tiny", None, None, None, 21),
        inputs=(InputSpec("image", "float32", (3, 32, 32), "image"),),
        preprocessing=Preprocessing(
            "image", (32, 32), "NCHW", "RGB", 1 / 255, (0, 0, 0), (1, 1, 1), "bilinear", 1.0
        ),
        task=Task("cross_entropy", 10, ()),
        recipe=Recipe(("bias",), bits, "store", "adamw", 8, tuple(arenas), None, 0),
        trainables=(Trainable("b", (24_576,), "bias", "m", False, PARAM_BYTES),),
        saved=(),
        weights=(
            WeightEntry("v", "float32", (1024,), 10 * MIB, 4096),
            WeightEntry("w", "float32", (10 * MIB // 4,), 0, 10 * MIB),
        ),
        graphs=Graphs(
            train=train,
            eval=BatchGraph("eval.onnx", eval_batch, plan(eval_arena), evidence(31, 1)),
            infer=InferGraph("infer.onnx", ()),
            optimizer=OptimizerGraph("optimizer.onnx", plan(MIB), evidence(29, 1)),
        ),
        compat=Compat("1.19", ("cpu",)),
    )
    if optimizer == "sgd":
        recipe = dataclasses.replace(made.recipe, optimizer="sgd")
        made = dataclasses.replace(made, recipe=recipe)
    return Manifest.from_json(made.to_json())


@pytest.mark.parametrize(
    ("threads", "version", "more_bytes"),
    [
        (None, None, 0),
        (1, None, 0),
        (6, None, 4 * THREAD_BYTES),
        (6, (1, 22), 4 * THREAD_BYTES),
        (2, (1, 23), 3 * MIB),
        (6, (1, 26), 7 * MIB),
        (6, (1, 27), 4 * THREAD_BYTES),
    ],
)
def test_threads_and_some_versions_need_a_larger_arena(
    threads: int | None, version: tuple[int, int] | None, more_bytes: int
) -> None:
    setting = Setting(threads=threads, onnxruntime=version)
    needed = requirement(manifest({4: 40 * MIB}), setting=setting)
    assert needed.arena_bytes == needed.of_kind(LineKind.ARENA) == 40 * MIB + more_bytes


def test_the_gpu_does_not_care_for_the_cpus_convolutions() -> None:
    setting = Setting(provider="cuda", onnxruntime=(1, 24))
    assert requirement(manifest({4: 40 * MIB}), setting=setting).arena_bytes == 40 * MIB


def test_every_part_is_counted_once() -> None:
    needed = requirement(manifest({1: 10 * MIB, 4: 40 * MIB}))
    assert needed.micro_batch == 4
    assert needed.arena_bytes == 40 * MIB
    sizes = {kind: needed.of_kind(kind) for kind in LineKind}
    row_bytes = IMAGE_BYTES + 2 * 10 * 4 + 4 + 4  # targets and logits; weight and loss
    assert sizes == {
        LineKind.RUNTIME: 31 * MIB,
        LineKind.SESSIONS: 4 * MIB,
        LineKind.WEIGHTS: WEIGHT_BYTES,
        LineKind.ARENA: 40 * MIB,
        LineKind.TRAINABLES: PARAM_BYTES,
        LineKind.GRADIENTS: PARAM_BYTES,
        LineKind.OPTIMIZER: 2 * PARAM_BYTES,
        LineKind.INPUTS: 2 * 4 * row_bytes + Setting().decoded_image_bytes,
        LineKind.OTHER: PIPELINE_BYTES,
    }
    assert needed.total_bytes == sum(sizes.values())


def test_sgd_keeps_one_state() -> None:
    needed = requirement(manifest({1: MIB}, optimizer="sgd"))
    assert needed.of_kind(LineKind.OPTIMIZER) == PARAM_BYTES


def test_sessions_share_one_arena_of_the_largest_plan() -> None:
    needed = requirement(manifest({1: 2 * MIB}, eval_arena=9 * MIB))
    assert needed.arena_bytes == needed.of_kind(LineKind.ARENA) == 9 * MIB
    assert any("eval.onnx" in line.label for line in needed.lines)


def test_each_line_says_how_it_is_known() -> None:
    needed = requirement(manifest({1: MIB}))
    how = {line.kind: line.how for line in needed.lines}
    assert how[LineKind.RUNTIME] == how[LineKind.SESSIONS] == "measured at pack time"
    assert how[LineKind.ARENA] == how[LineKind.WEIGHTS] == "planned"


def test_the_callers_own_base_replaces_the_packed_one() -> None:
    setting = Setting(runtime_base_bytes=50 * MIB)
    line = requirement(manifest({1: MIB}), setting=setting).lines[0]
    assert (line.size_bytes, line.how) == (50 * MIB, "measured on this device")


def test_a_rehearsal_on_this_very_host_counts_unless_the_process_holds_more() -> None:
    """Two processes of one program differ a little; what one budget allows one, it allows both."""
    packed = manifest({1: MIB})
    evidence = packed.graphs.optimizer.evidence
    base = requirement(packed).total_bytes
    most_bytes = requirement(packed).of_kind(LineKind.RUNTIME) + PIPELINE_BYTES
    here = (evidence.machine, evidence.onnxruntime)

    def more(measured_bytes: int, rehearsed_as: tuple[str, str] | None) -> int:
        setting = Setting(runtime_base_bytes=measured_bytes, rehearsed_as=rehearsed_as)
        return requirement(packed, setting=setting).total_bytes - base

    assert more(most_bytes - 3 * MIB, here) == more(most_bytes, here) == 0
    assert more(most_bytes + 7, here) == 7
    assert more(most_bytes - 3 * MIB, None) == -3 * MIB
    assert more(most_bytes - 3 * MIB, (evidence.machine, "1.19.2")) == -3 * MIB
    assert more(most_bytes - 3 * MIB, ("another", evidence.onnxruntime)) == -3 * MIB


def test_what_the_rehearsal_needed_beyond_the_plan_is_a_line() -> None:
    known = 30 * MIB + 2 * MIB + 8 * MIB + 2 * PARAM_BYTES + (IMAGE_BYTES + 88)
    needed = requirement(manifest({1: 8 * MIB}, peak_bytes=known + 12345))
    assert needed.of_kind(LineKind.OTHER) == 12345 + PIPELINE_BYTES


def test_cuda_copies_the_weights_for_both_sessions_that_read_them() -> None:
    """And maps one of them at a time: none is counted as mapped and as copied."""
    bundle = manifest({1: MIB})
    largest = max(weight.size_bytes for weight in bundle.weights)
    for evaluation, copies in ((True, 2), (False, 1)):
        needed = requirement(bundle, setting=Setting(provider="cuda", evaluation=evaluation))
        assert needed.of_kind(LineKind.WEIGHTS) == copies * WEIGHT_BYTES + largest


def test_cuda_sessions_have_arenas_of_their_own() -> None:
    bundle = manifest({1: MIB})
    needed = requirement(bundle, setting=Setting(provider="cuda"))
    assert needed.of_kind(LineKind.ARENA) == sum(needed.arenas.values()) > needed.arena_bytes
    assert requirement(bundle).of_kind(LineKind.ARENA) == needed.arena_bytes


def test_array_data_needs_no_image_buffer() -> None:
    arrays = dataclasses.replace(manifest({1: MIB}), preprocessing=None)
    with_images = requirement(manifest({1: MIB})).of_kind(LineKind.INPUTS)
    assert with_images - requirement(arrays).of_kind(LineKind.INPUTS) == 1920 * 1080 * 4 + MIB


def test_an_unpacked_micro_batch_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="4, 1"):
        requirement(manifest({1: MIB, 4: MIB}), micro_batch=3)


def test_a_requirement_is_json_ready() -> None:
    needed = requirement(manifest({1: MIB}))
    written = json.loads(json.dumps(needed.as_dict()))
    assert written["total_bytes"] == needed.total_bytes == sum(x["bytes"] for x in written["lines"])


@given(st.integers(-(2**40), 2**50))
def test_a_verdict_adds_up(budget_bytes: int) -> None:
    needed = requirement(manifest({1: MIB}))
    verdict = needed.verdict(budget_bytes)
    assert verdict.fits == (budget_bytes >= needed.total_bytes)
    left_bytes = verdict.headroom_bytes - verdict.missing_bytes
    assert left_bytes == budget_bytes - needed.total_bytes
    assert min(verdict.headroom_bytes, verdict.missing_bytes) == 0


ARENAS = st.dictionaries(st.integers(1, 64), st.integers(1, 500 * MIB), min_size=1, max_size=5).map(
    lambda arenas: dict(zip(sorted(arenas), sorted(arenas.values()), strict=True))
)


@given(ARENAS, st.integers(0, 100 * MIB), st.sampled_from(["adamw", "sgd"]))
def test_a_larger_micro_batch_never_needs_less(
    arenas: dict[int, int], eval_arena: int, optimizer: str
) -> None:
    bundle = manifest(arenas, eval_arena=eval_arena, optimizer=optimizer)
    totals = [requirement(bundle, micro_batch=n).total_bytes for n in sorted(arenas)]
    assert totals == sorted(totals)


@given(ARENAS, st.integers(0, 700 * MIB))
def test_the_largest_that_fits_is_chosen(arenas: dict[int, int], budget_bytes: int) -> None:
    bundle = manifest(arenas)
    fitting = [
        n
        for n in arenas
        if requirement(bundle, micro_batch=n).verdict(budget_bytes).fits
    ]  # fmt: skip
    if fitting:
        assert choose_micro_batch(bundle, budget_bytes) == max(fitting)
        return
    with pytest.raises(BudgetError) as caught:
        choose_micro_batch(bundle, budget_bytes)
    smallest = requirement(bundle, micro_batch=min(arenas))
    assert caught.value.missing_bytes == smallest.total_bytes - budget_bytes > 0
    assert caught.value.exit_code == 3


def test_a_budget_of_exactly_the_total_fits() -> None:
    bundle = manifest({2: 8 * MIB})
    total_bytes = requirement(bundle).total_bytes
    assert choose_micro_batch(bundle, total_bytes) == 2
    with pytest.raises(BudgetError) as caught:
        choose_micro_batch(bundle, total_bytes - 1)
    assert caught.value.missing_bytes == 1


def test_micro_batches_come_largest_first() -> None:
    assert micro_batches(manifest({1: MIB, 8: MIB, 4: MIB})) == (8, 4, 1)


class TestAdvice:
    def test_a_packed_micro_batch_that_fits_comes_first(self) -> None:
        bundle = manifest({1: 10 * MIB, 2: 20 * MIB, 4: 40 * MIB})
        budget_bytes = requirement(bundle, micro_batch=2).total_bytes
        error = does_not_fit(bundle, requirement(bundle), budget_bytes)
        assert error.todo.startswith("train with --micro-batch ")
        assert "--micro-batch 2 (20.0 MiB less, " in error.todo
        assert "--micro-batch 1 (30.0 MiB less, " in error.todo
        assert [change["fits"] for change in error.changes] == [True, True]
        assert error.as_dict()["changes"] == list(error.changes)

    def test_then_what_to_pack_with(self) -> None:
        bundle = manifest({4: 400 * MIB}, bits=8)
        error = does_not_fit(bundle, requirement(bundle), 200 * MIB)
        assert "pack again with --micro-batch 2 and --bits 4" in error.todo

    def test_at_four_bits_two_are_left(self) -> None:
        bundle = manifest({1: 400 * MIB}, bits=4)
        error = does_not_fit(bundle, requirement(bundle), 200 * MIB)
        assert "pack again with --bits 2" in error.todo

    def test_at_the_smallest_of_both_only_memory_helps(self) -> None:
        bundle = manifest({1: 400 * MIB}, bits=2)
        error = does_not_fit(bundle, requirement(bundle), 200 * MIB)
        assert "pack again" not in error.todo
        assert "--budget" in error.todo

    def test_where_the_fixed_part_alone_is_too_much_flags_do_not_help(self) -> None:
        bundle = manifest({4: 10 * MIB})
        error = does_not_fit(bundle, requirement(bundle), 20 * MIB)
        assert "smaller backbone" in error.todo
        assert "pack again" not in error.todo

    @given(ARENAS, st.integers(0, 700 * MIB))
    def test_the_budget_it_names_is_enough(self, arenas: dict[int, int], budget: int) -> None:
        bundle = manifest(arenas)
        needed = requirement(bundle)
        error = does_not_fit(bundle, needed, budget)
        named = error.todo.partition("--budget ")[2].split()[0]
        assert needed.verdict(parse_bytes(named)).fits
