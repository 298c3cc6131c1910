"""``s2a-edge pack``: compile a backbone into a training bundle, on the host."""

from __future__ import annotations

from typing import Any

import typer

from s2a_edge.cli import pack_options as option
from s2a_edge.cli.output import Json, Output, Quiet
from s2a_edge.cli.pack_bundle import write_bundle
from s2a_edge.cli.pack_lists import show_blocks, show_features
from s2a_edge.cli.pack_ort_training import write_artifacts
from s2a_edge.cli.run_options import Threads
from s2a_edge.cli.search_options import search_options
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


def pack(  # one parameter for each option: that is how typer declares them
    context: typer.Context,
    source: option.Source,
    out: option.Out = None,
    bundle_format: option.BundleFormat = "s2a",
    weights: option.Weights = None,
    features: option.Features = None,
    list_features: option.ListFeatures = False,
    pool: option.Pool = None,
    tokenizer: option.Tokenizer = None,
    classes: option.Classes = None,
    outputs: option.Outputs = None,
    labels: option.Labels = None,
    input_shape: option.InputShape = None,
    batch: option.Batch = 32,
    micro_batch: option.MicroBatch = "8",
    adapters: option.Adapters = "bias",
    rank: option.Rank = 4,
    reduce: option.Reduce = 8,
    alpha: option.Alpha = 8.0,
    blocks: option.Blocks = "all",
    target_modules: option.TargetModules = None,
    list_blocks: option.ListBlocks = False,
    bits: option.Bits = "4",
    frozen: option.Frozen = "fp32",
    precision: option.Precision = "fp32",
    emulate: option.Emulate = False,
    budget: option.Budget = None,
    saved_budget: option.SavedBudget = None,
    auto: option.Auto = False,
    max_gradient_error: option.MaxGradientError = 0.1,
    times_from: option.TimesFrom = "host",
    plot: option.Plot = None,
    attention: option.Attention = "auto",
    recompute: option.Recompute = "cheap",
    native: option.Native = True,
    loss: option.Loss = "cross_entropy",
    optimizer: option.Optimizer = "adamw",
    device: option.Device = None,
    mean: option.Mean = None,
    std: option.Std = None,
    scale: option.Scale = None,
    channels: option.Channels = None,
    crop: option.Crop = None,
    interpolation: option.Interpolation = None,
    seed: option.Seed = 0,
    calibration: option.Calibration = None,
    calibration_samples: option.CalibrationSamples = 16,
    threads: Threads = None,
    sign: option.Sign = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a pretrained backbone into a training bundle."""
    output = Output(as_json=as_json, quiet=quiet)
    shape = parse_shape(input_shape, flag="--input") if input_shape else None
    if list_features:
        show_features(output, source, shape, weights)
        return
    if list_blocks:
        cut = {"features": features, "pool": pool}
        show_blocks(output, source, input_shape=shape, weights=weights, **cut)
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
        **search_options(
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
    write_bundle(output, source, out, recipe, sign=sign, plot=plot)
