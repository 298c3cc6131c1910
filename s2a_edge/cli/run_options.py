"""Options that the commands on a board share: what executes the step, and with how much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DATA_HELP = "Class folders of images; labels.csv in a folder, or a .csv, of images or texts; .npz."

EngineName = Literal["auto", "cuda", "cpu"]
CheckpointName = Literal["best", "last"]

Engine = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        "--provider",
        help="What executes graphs; auto: CUDA where runtime, bundle and budget allow it.",
    ),
]
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
