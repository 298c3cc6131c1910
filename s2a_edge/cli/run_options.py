"""Options that the commands on a board share: what executes the step, and with how much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DATA_HELP = "Class folders of images; labels.csv in a folder, or a .csv, of images or texts; .npz."

ProviderName = Literal["cpu", "cuda"]
CheckpointName = Literal["best", "last"]

Provider = Annotated[ProviderName, typer.Option("--provider", help="What executes the step.")]
Kernels = Annotated[
    Literal["auto", "native", "portable"],
    typer.Option(
        "--kernels",
        help="Kernels in C, compiled for this machine, or nodes that every runtime has; "
        "auto: native where there is a compiler.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of one operator; default: all usable cores.")
]
Checkpoint = Annotated[
    CheckpointName | None,
    typer.Option("--checkpoint", help="Of a run; default: best, or else last."),
]
MovedBundle = Annotated[
    Path | None, typer.Option("--bundle", help="Where the run's bundle is now, if it was moved.")
]
