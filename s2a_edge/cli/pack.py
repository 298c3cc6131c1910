"""``s2a-edge pack``: compile a backbone into a training bundle, on the host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2a_edge.cli.frontier import draw_frontier, search_parts
from s2a_edge.cli.memory_plot import require_plot_name
from s2a_edge.cli.output import Json, Output, Quiet, stage_notes, table
from s2a_edge.cli.pack_ort_training import write_artifacts
from s2a_edge.cli.run_options import Threads
from s2a_edge.cli.task_options import task_options
from s2a_edge.cli.values import (
    parse_bits,
    parse_counts,
    parse_names,
    parse_reals,
    parse_shape,
)
from s2a_edge.spec.device_profile import load_profile
from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.units import parse_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from s2a_edge.pack.build import PackReport
    from s2a_edge.pack.capture import Candidate
    from s2a_edge.spec.device_profile import Provider

_ONLY_WITH_AUTO = {
    "max_gradient_error": "--max-gradient-error",
    "times_from": "--times-from",
    "plot": "--plot",
}


def pack(  # one parameter for each option: that is how typer declares them
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(help="FILE.onnx, timm:NAME, hf:FOLDER_OR_CONFIG or package.module:factory."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Bundle to write: NAME.s2a is one file, else a folder."),
    ] = None,
    bundle_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="s2a: a training bundle; ort-training: artifacts of onnxruntime's On-Device "
            "Training API, in a folder.",
        ),
    ] = "s2a",
    weights: Annotated[
        Path | None, typer.Option(help="Weights for a model that comes without: .safetensors.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Cut an ONNX graph at this value; see --list-features.")
    ] = None,
    list_features: Annotated[
        bool, typer.Option("--list-features", help="List values to cut at, and stop.")
    ] = False,
    pool: Annotated[
        str | None, typer.Option(help="How features become one vector: cls, mean or gap.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.json for texts; an hf: folder's own is found."),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Number of classes, or of labels with bce.", min=1)
    ] = None,
    outputs: Annotated[
        int | None, typer.Option(help="How many numbers to predict, with mse or l1.", min=1)
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Text file with the name of one class, label or number a line."),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input", help="Shape without the batch: 3x224x224; 64 (tokens).")
    ] = None,
    batch: Annotated[int, typer.Option(help="Effective batch of an update.", min=1)] = 32,
    micro_batch: Annotated[
        str, typer.Option(help="Samples a step takes at once; several make several graphs: 2,4,8.")
    ] = "8",
    adapters: Annotated[
        str,
        typer.Option(
            help="What trains besides the head: bias, lrp, lsb in any combination; lora, or full "
            "alone, to compare with."
        ),
    ] = "bias",
    rank: Annotated[
        int, typer.Option(help="Inner width of low-rank prompts, side branches and LoRA.", min=1)
    ] = 4,
    reduce: Annotated[
        int, typer.Option(help="Channels that a side branch averages into one.", min=1)
    ] = 8,
    alpha: Annotated[float, typer.Option(help="LoRA: updates are scaled by alpha / rank.")] = 8.0,
    blocks: Annotated[
        str,
        typer.Option(
            help="Which blocks get adapters: all, last:N, first:N, every:N, or names such as "
            "blocks.3,layers.2 or a regular expression. Backward ends at the first of them."
        ),
    ] = "all",
    target_modules: Annotated[
        str | None,
        typer.Option(
            help="Modules whose biases (lora, full: weights) train: ends of names such as "
            "qkv,mlp.fc1, or a regular expression for the whole name."
        ),
    ] = None,
    list_blocks: Annotated[
        bool, typer.Option("--list-blocks", help="List the blocks of the backbone, and stop.")
    ] = False,
    bits: Annotated[
        str,
        typer.Option(
            help="Bits of saved values: 2, 3, 4, 8, 16, or 32 for off; auto: chosen for each by "
            "the gradient error that it causes."
        ),
    ] = "4",
    frozen: Annotated[
        str,
        typer.Option(help="How frozen weights are kept: fp32, fp16, int8 or int4."),
    ] = "fp32",
    precision: Annotated[
        str,
        typer.Option(
            help="What graphs compute in: fp32, or on CUDA fp16 or bf16."
        ),
    ] = "fp32",
    emulate: Annotated[
        bool,
        typer.Option(
            "--emulate",
            help="With fp16 or bf16: float32 graphs that round as it does, to try it on a CPU.",
        ),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of training that the bundle must fit, such as 600MiB; --bits auto uses "
            "it up.",
        ),
    ] = None,
    saved_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="With --bits auto: most saved values per sample, such as 8MB."
        ),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="Find micro-batch, bits, attention, storage of frozen weights and blocks: the "
            "fastest step within --budget, or the budget of --device. What is given stays fixed.",
        ),
    ] = False,
    max_gradient_error: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="With --auto: the most that codes of saved values may change the gradients.",
        ),
    ] = 0.1,
    times_from: Annotated[
        str,
        typer.Option(
            help="With --auto: step times from timed runs on this host, or from the peak rates of "
            "the GPU of --device: host or device."
        ),
    ] = "host",
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="With --auto: draw memory against step time, as a picture."
        ),
    ] = None,
    attention: Annotated[
        str, typer.Option(help="Attention probabilities: auto, store or recompute.")
    ] = "auto",
    recompute: Annotated[
        str,
        typer.Option(
            help="What is computed again instead of kept: none, cheap (element-wise operators), "
            "products (also one product with a frozen matrix: fewest bytes, more time).",
        ),
    ] = "cheap",
    native: Annotated[
        bool,
        typer.Option(
            "--native/--no-native",
            help="Also make each training step with kernels in C, which is faster where they can "
            "be compiled.",
        ),
    ] = True,
    loss: Annotated[
        str,
        typer.Option(
            help="cross_entropy: one class of several; bce: any number of labels; mse or l1: "
            "numbers; output:NAME: a scalar output of an ONNX file."
        ),
    ] = "cross_entropy",
    optimizer: Annotated[str, typer.Option(help="adamw or sgd.")] = "adamw",
    device: Annotated[str | None, typer.Option(help="Device profile to pack for.")] = None,
    mean: Annotated[str | None, typer.Option(help="Mean of the channels, after --scale.")] = None,
    std: Annotated[str | None, typer.Option(help="Deviation of the channels.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor on pixels of 0..255.")] = None,
    channels: Annotated[str | None, typer.Option(help="RGB or BGR.")] = None,
    crop: Annotated[
        float | None,
        typer.Option("--crop-pct", help="Share of the resized image that is kept, 0..1."),
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="Resizing: bilinear or bicubic.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the head's initial values.", min=0)] = 0,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Measure gradient errors on this data, of a kind that train takes."),
    ] = None,
    calibration_samples: Annotated[int, typer.Option(help="At most so many of it.", min=1)] = 16,
    threads: Threads = None,
    sign: Annotated[
        Path | None, typer.Option(help="Sign the bundle with this secret key; see keygen.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a pretrained backbone into a training bundle."""
    output = Output(as_json=as_json, quiet=quiet)
    shape = parse_shape(input_shape, flag="--input") if input_shape else None
    if list_features:
        _list_features(output, source, shape, weights)
        return
    if list_blocks:
        cut = {"features": features, "pool": pool}
        _list_blocks(output, source, input_shape=shape, weights=weights, **cut)
        return
    image = {
        "mean": parse_reals(mean, flag="--mean") if mean else None,
        "std": parse_reals(std, flag="--std") if std else None,
        "scale": scale,
        "channels": channels,
        "crop_pct": crop,
        "interpolation": interpolation,
    }
    recipe: dict[str, Any] = {
        "weights": weights,
        "features": features,
        "pool": pool,
        "tokenizer": tokenizer,
        **task_options(loss, classes, outputs, labels),
        "input_shape": shape,
        "effective_batch": batch,
        "micro_batches": parse_counts(micro_batch, flag="--micro-batch"),
        "adapters": parse_names(adapters),
        "rank": rank,
        "reduce": reduce,
        "alpha": alpha,
        "blocks": blocks,
        "target_modules": target_modules,
        "bits": parse_bits(bits),
        "frozen": frozen,
        "precision": precision,
        "emulate": emulate,
        "budget_bytes": parse_bytes(budget, where="--budget") if budget else None,
        **_search_options(
            context, auto, max_gradient_error, times_from, plot, budget=budget, device=device
        ),
        "saved_budget_bytes": parse_bytes(saved_budget, where="--saved-budget")
        if saved_budget
        else None,
        "attention": attention,
        "recompute": recompute,
        "native": native,
        "optimizer": optimizer,
        "device": load_profile(device).name if device else None,
        "preprocessing": {name: value for name, value in image.items() if value is not None},
        "seed": seed,
        "threads": threads,
        "calibration": calibration,
        "calibration_samples": calibration_samples,
    }
    if out is None:
        raise UsageError(
            where="--out", expected="a path for the bundle", got="none", todo="add --out NAME.s2a"
        )
    if bundle_format != "s2a":
        write_artifacts(output, bundle_format, source, out, recipe, sign)
        return
    from s2a_edge.pack.build import pack as build_bundle
    from s2a_edge.pack.options import PackOptions
    from s2a_edge.spec.signing_key import load_key, sign_bundle

    key = load_key(sign) if sign else None  # before the work, which takes minutes
    report = build_bundle(source, out, PackOptions(**recipe), on_stage=stage_notes(output))
    if key is not None:
        output.note(f"signed by key {sign_bundle(report.path, key).key_id}")
    search = report.manifest.recipe.search
    output.show(_report_table(report), *([] if search is None else search_parts(search)))
    if plot is not None and search is not None:
        draw_frontier(plot, report.manifest)
        output.note(f"{plot}: memory against step time")
    output.result(report)


def _search_options(
    context: typer.Context,
    auto: bool,
    max_gradient_error: float,
    times_from: str,
    plot: Path | None,
    *,
    budget: str | None,
    device: str | None,
) -> dict[str, Any]:
    """Fields of the recipe for ``--auto``; none without it."""
    from s2a_edge.cli.budget_option import resolve_budget
    from s2a_edge.pack.search.options import SEARCHED, SearchOptions

    if plot is not None:
        require_plot_name(plot, (".png",))
    if not auto:
        for name, flag in _ONLY_WITH_AUTO.items():
            if _is_given(context, name):
                raise UsageError(
                    where=flag, expected="--auto beside it", got="none", todo="add --auto"
                )
        return {}
    names = {"micro_batches": "micro_batch"}
    fixed = frozenset(x for x in SEARCHED if _is_given(context, names.get(x, x)))
    search = SearchOptions(fixed, max_gradient_error, times_from)  # type: ignore[arg-type]  # checked by the class
    found: dict[str, Any] = {"auto": search}
    if budget is None and device is not None:
        provider: Provider = "cuda" if times_from == "device" else "cpu"
        given = resolve_budget(budget=None, device=device, provider=provider)
        assert given is not None
        found["budget_bytes"] = given.budget_bytes
    return found


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave the option, and not its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _list_features(
    output: Output, source: str, shape: tuple[int, ...] | None, weights: Path | None
) -> None:
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


def _list_blocks(output: Output, source: str, **options: Any) -> None:
    from s2a_edge.pack.capture import open_source
    from s2a_edge.pack.network import list_blocks

    blocks = list_blocks(open_source(source, **options))
    rows = table("Blocks, from the input to the features", ("--blocks", "output", "residual"))
    for block in blocks:
        rows.add_row(block.name, "x".join(map(str, block.shape)), "yes" if block.residual else "no")
    output.show(rows)
    output.result(blocks)


def _report_table(report: PackReport) -> Table:
    from s2a_edge.spec.units import format_bytes

    made = table(f"{report.path} ({format_bytes(report.size_bytes)})", ("", "value"))
    manifest = report.manifest
    for group in report.tunable:
        made.add_row(
            f"trainables: {group.adapter}",
            f"{group.tensors} tensors, {group.parameters:,} parameters, {group.share:.3%}",
        )
    if manifest.frozen.logits_error is not None:
        made.add_row(
            f"{manifest.frozen.storage} weights",
            f"{manifest.frozen.logits_error:.2%} error of the output before training",
        )
    for graph in manifest.graphs.train:
        plan, seen = graph.plan, graph.evidence
        planned, measured = plan.liveness_peak_bytes, seen.arena_measured_bytes
        made.add_row(
            graph.file,
            f"planned peak {format_bytes(planned)}, measured {format_bytes(measured)}, "
            f"step {seen.step_ms:.0f} ms (n = {seen.n})",
        )
        if graph.native is not None:
            faster = graph.native.evidence
            measured = faster.arena_measured_bytes
            made.add_row(
                graph.native.file,
                f"with kernels in C: measured {format_bytes(measured)}, "
                f"step {faster.step_ms:.0f} ms (n = {faster.n})",
            )
        if seen.gradient_error is not None:
            error = seen.gradient_error
            made.add_row(
                "gradient error",
                f"{error.total:.2%} of all; by trainable median {error.median:.2%}, "
                f"largest {error.max:.2%} ({error.worst})",
            )
    return made
