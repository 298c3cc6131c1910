"""The options of ``s2a-edge pack``: their flags, and what the help says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(help="FILE.onnx, timm:NAME, hf:FOLDER_OR_CONFIG or package.module:factory."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Bundle to write: NAME.s2a is one file, else a folder."),
]
BundleFormat = Annotated[
    str,
    typer.Option(
        "--format",
        help="s2a: a training bundle; ort-training: artifacts of onnxruntime's On-Device "
        "Training API, in a folder.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Weights for a model that comes without: .safetensors.")
]
Features = Annotated[
    str | None, typer.Option(help="Cut an ONNX graph at this value; see --list-features.")
]
ListFeatures = Annotated[
    bool, typer.Option("--list-features", help="List values to cut at, and stop.")
]
Pool = Annotated[
    str | None, typer.Option(help="How features become one vector: cls, mean or gap.")
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(help="tokenizer.json for texts; an hf: folder's own is found."),
]
Classes = Annotated[
    int | None, typer.Option(help="Number of classes, or of labels with bce.", min=1)
]
Outputs = Annotated[
    int | None, typer.Option(help="How many numbers to predict, with mse or l1.", min=1)
]
Labels = Annotated[
    Path | None,
    typer.Option(help="Text file with the name of one class, label or number a line."),
]
InputShape = Annotated[
    str | None, typer.Option("--input", help="Shape without the batch: 3x224x224; 64 (tokens).")
]
Batch = Annotated[int, typer.Option(help="Effective batch of an update.", min=1)]
MicroBatch = Annotated[
    str, typer.Option(help="Samples a step takes at once; several make several graphs: 2,4,8.")
]
Adapters = Annotated[
    str,
    typer.Option(
        help="What trains besides the head: bias, lrp, lsb in any combination; lora, or full "
        "alone, to compare with."
    ),
]
Rank = Annotated[
    int, typer.Option(help="Inner width of low-rank prompts, side branches and LoRA.", min=1)
]
Reduce = Annotated[
    int, typer.Option(help="Channels that a side branch averages into one.", min=1)
]
Alpha = Annotated[float, typer.Option(help="LoRA: updates are scaled by alpha / rank.")]
Blocks = Annotated[
    str,
    typer.Option(
        help="Which blocks get adapters: all, last:N, first:N, every:N, or names such as "
        "blocks.3,layers.2 or a regular expression. Backward ends at the first of them."
    ),
]
TargetModules = Annotated[
    str | None,
    typer.Option(
        help="Modules whose biases (lora, full: weights) train: ends of names such as "
        "qkv,mlp.fc1, or a regular expression for the whole name."
    ),
]
ListBlocks = Annotated[
    bool, typer.Option("--list-blocks", help="List the blocks of the backbone, and stop.")
]
Bits = Annotated[
    str,
    typer.Option(
        help="Bits of saved values: 2, 3, 4, 8, 16, or 32 for off; auto: chosen for each by "
        "the gradient error that it causes."
    ),
]
Frozen = Annotated[
    str,
    typer.Option(help="How frozen weights are kept: fp32, fp16, int8 or int4."),
]
Precision = Annotated[
    str,
    typer.Option(
        help="What graphs compute in: fp32, or on CUDA fp16 or bf16."
    ),
]
Emulate = Annotated[
    bool,
    typer.Option(
        "--emulate",
        help="With fp16 or bf16: float32 graphs that round as it does, to try it on a CPU.",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory of training that the bundle must fit, such as 600MiB; --bits auto uses "
        "it up.",
    ),
]
SavedBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="With --bits auto: most saved values per sample, such as 8MB."
    ),
]
Auto = Annotated[
    bool,
    typer.Option(
        "--auto",
        help="Find micro-batch, bits, attention, storage of frozen weights and blocks: the "
        "fastest step within --budget, or the budget of --device. What is given stays fixed.",
    ),
]
MaxGradientError = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="With --auto: the most that codes of saved values may change the gradients.",
    ),
]
TimesFrom = Annotated[
    str,
    typer.Option(
        help="With --auto: step times from timed runs on this host, or from the peak rates of "
        "the GPU of --device: host or device."
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.png", help="With --auto: draw memory against step time, as a picture."
    ),
]
Attention = Annotated[
    str, typer.Option(help="Attention probabilities: auto, store or recompute.")
]
Recompute = Annotated[
    str,
    typer.Option(
        help="What is computed again instead of kept: none, cheap (element-wise operators), "
        "products (also one product with a frozen matrix: fewest bytes, more time).",
    ),
]
Native = Annotated[
    bool,
    typer.Option(
        "--native/--no-native",
        help="Also make each training step with kernels in C, which is faster where they can "
        "be compiled.",
    ),
]
Loss = Annotated[
    str,
    typer.Option(
        help="cross_entropy: one class of several; bce: any number of labels; mse or l1: "
        "numbers; output:NAME: a scalar output of an ONNX file."
    ),
]
Optimizer = Annotated[str, typer.Option(help="adamw or sgd.")]
Device = Annotated[str | None, typer.Option(help="Device profile to pack for.")]
Mean = Annotated[str | None, typer.Option(help="Mean of the channels, after --scale.")]
Std = Annotated[str | None, typer.Option(help="Deviation of the channels.")]
Scale = Annotated[float | None, typer.Option(help="Factor on pixels of 0..255.")]
Channels = Annotated[str | None, typer.Option(help="RGB or BGR.")]
Crop = Annotated[
    float | None,
    typer.Option("--crop-pct", help="Share of the resized image that is kept, 0..1."),
]
Interpolation = Annotated[
    str | None, typer.Option(help="Resizing: bilinear or bicubic.")
]
Seed = Annotated[int, typer.Option(help="Seed of the head's initial values.", min=0)]
Calibration = Annotated[
    Path | None,
    typer.Option(help="Measure gradient errors on this data, of a kind that train takes."),
]
CalibrationSamples = Annotated[int, typer.Option(help="At most so many of it.", min=1)]
Sign = Annotated[
    Path | None, typer.Option(help="Sign the bundle with this secret key; see keygen.")
]
