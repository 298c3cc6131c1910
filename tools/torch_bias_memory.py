#!/usr/bin/env python3
"""Memory that PyTorch needs for bias tuning of the demonstration's backbone (a ViT-S/14, 112 px).

    python tools/torch_bias_memory.py
    python tools/torch_bias_memory.py --models plain --micro-batches 16 8 4 1 --json out.json

Biases and the head train (AdamW, float32, eager); everything else is frozen and the weights are
random: memory does not depend on their values. ``timm``: timm's VisionTransformer, as most people
would build it. ``plain``: the same layers of torch.nn alone, without what importing timm brings,
which is the least that PyTorch can do. Every row is a process of its own; a smaller micro-batch
accumulates gradients up to the same effective batch. Sizes are the kernel's (VmHWM, RssAnon,
RssFile). The demonstration's --budget must be below half of the smallest peak of the default rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2a_edge.run.process_memory import read_memory
from s2a_edge.spec.machine import machine

MIB = 2**20
IMAGE_PX, PATCH_PX, WIDTH, DEPTH, HEADS = 112, 14, 384, 12, 6
EFFECTIVE_BATCH = 16
CLASSES = 2


def main() -> int:
    options = _options()
    if options.worker is not None:
        model, micro_batch = options.worker.split("/")
        print(json.dumps(_measure(model, int(micro_batch), options.steps, options.threads)))
        return 0
    rows = [_work(f"{m}/{n}", options) for m in options.models for n in options.micro_batches]
    report = {
        "command": " ".join(["python", "tools/torch_bias_memory.py", *sys.argv[1:]]),
        "machine": f"{machine()}, {options.threads} threads, Python "
        f"{platform.python_version()}, torch {version('torch')}, timm {version('timm')}",
        "model": f"ViT {WIDTH}x{DEPTH}, patch {PATCH_PX}, {IMAGE_PX} px, biases and head, AdamW",
        "effective_batch": EFFECTIVE_BATCH,
        "rows": rows,
        "half_of_smallest_peak_bytes": min(row["peak_bytes"] for row in rows) // 2,
    }
    text = json.dumps(report, indent=1)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="+", default=["timm", "plain"],
                        choices=["timm", "plain"])
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[16, 8])
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one of warm-up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def _work(job: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", job]
    done = subprocess.run(
        [*command, "--steps", str(options.steps), "--threads", str(options.threads)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def _timm_model() -> nn.Module:
    from s2a_edge.pack.capture.timm_model import define_torchvision_schemas

    define_torchvision_schemas()
    from timm.models.vision_transformer import VisionTransformer

    made: nn.Module = VisionTransformer(
        img_size=IMAGE_PX,
        patch_size=PATCH_PX,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        init_values=1e-5,
        num_classes=CLASSES,
    )
    return made


class _Block(nn.Module):
    """x [B, T, D] -> [B, T, D]: pre-norm attention and MLP, each with a LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.scale1 = nn.Parameter(torch.full((WIDTH,), 1e-5))
        self.scale2 = nn.Parameter(torch.full((WIDTH,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.scale1 * self.proj(mixed.transpose(1, 2).reshape(b, t, d))
        out: Tensor = x + self.scale2 * self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return out


class _PlainViT(nn.Module):
    """Images [B, 3, H, W] -> logits [B, C] of the class token."""

    def __init__(self) -> None:
        super().__init__()
        tokens = (IMAGE_PX // PATCH_PX) ** 2 + 1
        self.patch = nn.Conv2d(3, WIDTH, PATCH_PX, PATCH_PX)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, WIDTH))
        self.blocks = nn.Sequential(*(_Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


def _measure(kind: str, micro_batch: int, steps: int, threads: int) -> dict[str, Any]:
    """One process: builds the model, trains ``steps`` steps, says what it held."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = (_timm_model() if kind == "timm" else _PlainViT()).eval()
    built_bytes = read_memory().rss_bytes
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith("head."))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    parts = EFFECTIVE_BATCH // micro_batch
    step_ms = []
    for number in range(steps + 1):
        start_s = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for _ in range(parts):  # a batch is read when it is needed
            images = torch.randn(micro_batch, 3, IMAGE_PX, IMAGE_PX)
            labels = torch.randint(CLASSES, (micro_batch,))
            loss: Tensor = nn.functional.cross_entropy(model(images), labels) / parts
            loss.backward()
        optimizer.step()
        if number:
            step_ms.append(1000 * (time.perf_counter() - start_s))
    now = read_memory()
    return {
        "model": kind,
        "micro_batch": micro_batch,
        "trained_parameters": sum(p.numel() for p in trained),
        "before_training_bytes": built_bytes,
        "peak_bytes": now.peak_rss_bytes,
        "anon_bytes": now.peak_rss_bytes - now.file_bytes,
        "file_bytes": now.file_bytes,
        "peak_mib": round(now.peak_rss_bytes / MIB, 1),
        "step_ms": round(statistics.median(step_ms), 1),
        "step_ms_min": round(min(step_ms), 1),
        "n": len(step_ms),
    }


if __name__ == "__main__":
    sys.exit(main())
