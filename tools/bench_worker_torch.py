"""One process of ``bench_step``: PyTorch eager on the same model. Prints one JSON line.

``torch-full``: everything trains. ``torch-bias``: biases and the head train, normalization
statistics are frozen - our trainable set. ``torch-lora``: rank-8 LoRA (arXiv 2106.09685) on every
linear and convolution of the backbone, and the head. AdamW, float32; with ``-amp``, on CUDA, under
autocast to float16 with loss scaling.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from s2a_edge.pack.capture.timm_model import define_torchvision_schemas
from s2a_edge.run.process_memory import read_memory

_RANK = 8


class Lora(nn.Module):
    """y = f(x) + up(down(x)), up zero at the start; f frozen, linear or convolution."""

    def __init__(self, frozen: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.frozen = frozen
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(frozen, nn.Linear):
            self.down = nn.Linear(frozen.in_features, _RANK, bias=False)
            self.up = nn.Linear(_RANK, frozen.out_features, bias=False)
        else:
            like: Any = frozen  # sizes are pairs, which their type does not say
            self.down = nn.Conv2d(like.in_channels, _RANK, like.kernel_size, like.stride,
                                  like.padding, like.dilation, bias=False)
            self.up = nn.Conv2d(_RANK, frozen.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the frozen and the low-rank path."""
        y: Tensor = self.frozen(x) + self.up(self.down(x))
        return y


def configure(model: nn.Module, configuration: str) -> None:
    """Sets what trains, in place."""
    if configuration == "torch-full":
        model.train()
        return
    model.eval()
    head: nn.Module = model.get_classifier()  # type: ignore[operator]  # timm's models have it
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(configuration == "torch-bias" and name.endswith("bias"))
    if configuration == "torch-lora":
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                groups = getattr(child, "groups", 1)
                if isinstance(child, (nn.Linear, nn.Conv2d)) and child is not head and groups == 1:
                    setattr(parent, name, Lora(child))
    for parameter in head.parameters():
        parameter.requires_grad_(True)


def main() -> None:
    """Runs one warm-up step and ``steps`` timed ones."""
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    define_torchvision_schemas()
    import timm

    device, is_amp = request["engine"], request["configuration"].endswith("-amp")
    free_bytes = torch.cuda.mem_get_info()[0] if device == "cuda" else 0  # makes the context
    torch.manual_seed(0)
    model: Any = timm.create_model(request["model"], num_classes=request["classes"])
    configure(model, request["configuration"].removesuffix("-amp"))
    model.to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    scaler = torch.amp.GradScaler(device, enabled=is_amp)
    side = model.pretrained_cfg["input_size"][-1]
    images = torch.randn(request["batch"], 3, side, side)
    labels = torch.randint(request["classes"], (request["batch"],))
    step_ms = []
    for number in range(request["steps"] + 1):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.float16, enabled=is_amp):
            loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loss.item()  # waits for the device, as a training loop that shows its loss does
        if number:
            step_ms.append(1000 * (time.perf_counter() - start))
    # PyTorch's allocator keeps what it has taken, so what is gone at the end was the peak.
    device_bytes = free_bytes - torch.cuda.mem_get_info()[0] if free_bytes else None
    now = read_memory()
    print(json.dumps({"step_ms": step_ms, "peak_bytes": now.peak_rss_bytes,
                      "anon_bytes": now.peak_rss_bytes - now.file_bytes,
                      "file_bytes": now.file_bytes, "device_bytes": device_bytes}))


if __name__ == "__main__":
    main()
