"""A small PyTorch model that computes its own loss, and the same as an ONNX file."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

F = nn.functional
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
CLASSES = 5
INPUT = (3, 8, 8)


class WithLoss(nn.Module):
    """[N, 3, 8, 8] and targets -> loss [], prediction [N, 5]; a branch that the loss ignores."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.LayerNorm(8)
        self.hidden, self.out = nn.Linear(8, 12), nn.Linear(12, CLASSES)
        self.aside = nn.Linear(12, 2)
        self.loss = loss
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(self, image: torch.Tensor, target: torch.Tensor,
                ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.norm(torch.relu(self.conv(image)).mean((2, 3)))
        x = F.gelu(self.hidden(x))
        z = self.out(x)
        return self.loss(z, target), z, self.aside(x)


def contrastive(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Each row is to find its own target among those of the whole micro-batch."""
    z, target = F.normalize(z), F.normalize(target)
    return ((z @ target.T / 0.2).logsumexp(-1) - (z * target).sum(-1) / 0.2).mean()


def huber(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``huber_loss``, which the older exporter does not know; a comparison chooses."""
    error = (z - target).abs()
    return torch.where(error < 1, 0.5 * error**2, error - 0.5).mean()


CLASS = torch.zeros(2, dtype=torch.long)
ROW = torch.zeros(2, CLASSES)
# Loss, and an example of its targets.
LOSSES: dict[str, tuple[Loss, torch.Tensor]] = {
    "cross_entropy": (F.cross_entropy, CLASS),
    "weighted": (lambda z, t: F.cross_entropy(z, t, weight=torch.arange(1.0, 6.0)), CLASS),
    "mse": (F.mse_loss, ROW),
    "huber": (huber, ROW),
    "bce": (lambda z, t: F.binary_cross_entropy_with_logits(z, t.sigmoid()), ROW),
    "distillation": (lambda z, t: F.kl_div(z.log_softmax(-1), t.softmax(-1),
                                           reduction="batchmean"), ROW),
    "cosine": (lambda z, t: (1 - F.cosine_similarity(z, t)).mean(), ROW),
    "contrastive": (contrastive, ROW),
}


def export(name: str, path: Path) -> Path:
    """Writes the model with the loss ``name`` as an ONNX file of any batch."""
    loss, target = LOSSES[name]
    outputs = ["loss", "prediction", "aside"]
    with warnings.catch_warnings():
        # The older exporter is deprecated; it takes a tenth of a second where the newer takes some.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            WithLoss(loss).eval(), (torch.randn(2, *INPUT), target), str(path), dynamo=False,
            opset_version=17, input_names=["image", "target"], output_names=outputs,
            dynamic_axes={n: {0: "batch"} for n in ("image", "target", *outputs[1:])})
    return path
