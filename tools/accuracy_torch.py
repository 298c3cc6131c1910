"""One process of ``accuracy``: the same fine-tuning in PyTorch eager. Prints one JSON line.

A plain vision transformer (arXiv 2010.11929) with LayerScale (arXiv 2103.17239), written here,
that takes the weights of the ONNX file. Before it trains, its features must be those that ONNX
Runtime computes from the original file.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional

from s2a_edge.run.data import DataSet, MicroBatch, batches, soft_targets, steps_per_epoch
from s2a_edge.run.device_tensor import Array
from s2a_edge.run.process_memory import read_memory
from s2a_edge.run.schedule import WarmupCosine
from s2a_edge.spec.bundle import Bundle
from tools.accuracy_task import (
    HEAD_WEIGHT,
    Outcome,
    Reporter,
    Task,
    evaluation_data,
    read_task,
    start_values,
    training_data,
)

FEATURES_TOLERANCE = 1e-4  # of features of size 1 to 10, after twelve float32 blocks
_HEAD_WIDTH = 64  # of an attention head in every ViT of arXiv 2010.11929
_NORM_EPS = 1e-6
_MLP_RATIO = 4
_EMBEDDINGS = "backbone.embeddings."


class Projections(nn.Module):
    """Queries, keys, values [B, T, D] -> mixed values [B, T, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled dot-product attention over heads of 64."""
        q, k, v = (layer(x).unflatten(-1, (-1, _HEAD_WIDTH)).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention with its output projection, [B, T, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Projections(width)
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """Attend and project."""
        y: Tensor = self.output["dense"](self.attention(x))
        return y


class Mlp(nn.Module):
    """Two linear layers around an exact GELU, [B, T, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Token by token."""
        y: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return y


class LayerScale(nn.Module):
    """One factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        return x * self.lambda1


class Block(nn.Module):
    """A pre-norm transformer block, [B, T, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attention = Attention(width)
        self.layer_scale1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = Mlp(width)
        self.layer_scale2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        """Two residual branches."""
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        y: Tensor = x + self.layer_scale2(self.mlp(self.norm2(x)))
        return y


class Embeddings(nn.Module):
    """Images [B, 3, H, W] -> tokens [B, T, D]; the class token first."""

    def __init__(self, width: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embeddings = nn.ModuleDict(
            {"projection": nn.Conv2d(3, width, patch, stride=patch)})

    def forward(self, images: Tensor) -> Tensor:
        """Patches, class token, positions."""
        patches = self.patch_embeddings["projection"](images).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(len(images), -1, -1)
        return torch.cat([cls, patches], dim=1) + self.position


@dataclass(frozen=True)
class Sizes:
    """Sizes of a vision transformer: D, patch side, T with the class token, blocks, classes."""

    width: int
    patch: int
    tokens: int
    depth: int
    classes: int


class Backbone(nn.Module):
    """Images [B, 3, H, W] -> the class token's features [B, D]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = Embeddings(sizes.width, sizes.patch, sizes.tokens)
        self.encoder = nn.ModuleDict(
            {"layer": nn.Sequential(*(Block(sizes.width) for _ in range(sizes.depth)))})
        self.layernorm = nn.LayerNorm(sizes.width, eps=_NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Features after the last norm."""
        tokens = self.encoder["layer"](self.embeddings(images))
        y: Tensor = self.layernorm(tokens)[:, 0]
        return y


class Classifier(nn.Module):
    """A backbone and a linear head; parameter names are those of the ONNX file."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.backbone = Backbone(sizes)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C]."""
        y: Tensor = self.head(self.backbone(images))
        return y


def twin(frozen: Mapping[str, Array], trained: Mapping[str, Array]) -> Classifier:
    """The classifier with the given weights; only ``trained`` requires gradients.

    Args:
        frozen: as the packer's normalized graph holds them: linear weights are [in, out], the
            position embedding is already resized and is found by its shape [1, T, D], T > 1.
        trained: by name, in PyTorch's shapes.

    Raises:
        RuntimeError: weights are missing, left over or of another shape.
    """
    state = {name: torch.from_numpy(np.array(array)) for name, array in trained.items()}
    for name, array in frozen.items():
        is_position = array.ndim == 3 and array.shape[0] == 1 and array.shape[1] > 1
        values = array.T if array.ndim == 2 else array
        if name not in trained:
            state[f"{_EMBEDDINGS}position" if is_position else name] = torch.from_numpy(
                np.array(values, order="C"))
    with torch.device("meta"):  # no second copy of the weights
        model = Classifier(_sizes(state))
    model.load_state_dict(state, strict=True, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


def _sizes(state: Mapping[str, Tensor]) -> Sizes:
    projection = state[f"{_EMBEDDINGS}patch_embeddings.projection.weight"]
    blocks = {name.split(".")[3] for name in state if name.startswith("backbone.encoder.layer.")}
    return Sizes(width=projection.shape[0], patch=projection.shape[-1],
                 tokens=state[f"{_EMBEDDINGS}position"].shape[1], depth=len(blocks),
                 classes=state[HEAD_WEIGHT].shape[0])


def features_error(model: Classifier, path: str) -> float:
    """Largest difference to the features that ONNX Runtime computed from the original file."""
    with np.load(path) as stored, torch.no_grad():
        found = model.backbone(torch.from_numpy(stored["images"])).numpy()
        return float(np.abs(found - stored["features"]).max())


class Training:
    """AdamW on what requires gradients; the numbers of the loop are those of ``Trainer.fit``."""

    def __init__(self, model: Classifier, task: Task, bundle: Bundle) -> None:
        self.model, self.task = model, task
        self.recipe, self.classes = bundle.manifest.recipe, bundle.manifest.task.classes
        self.micro_batch = max(self.recipe.micro_batches)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for n, p in named if n == HEAD_WEIGHT],
              "weight_decay": task.weight_decay},
             {"params": [p for n, p in named if n != HEAD_WEIGHT], "weight_decay": 0.0}],
            lr=task.lr, betas=(0.9, 0.999), eps=1e-8)
        self.losses: list[float] = []

    def run(self, data: DataSet, report: Reporter) -> float:
        """Trains; returns the seconds that it took."""
        task, batch = self.task, self.recipe.effective_batch
        steps = steps_per_epoch(len(data), batch)
        lr = WarmupCosine(task.lr, task.epochs * steps, round(task.warmup_epochs * steps))
        start_s = time.monotonic()
        for epoch in range(task.epochs):
            loss_sum = 0.0
            for part in batches(data, batch, self.micro_batch, epoch, task.seed):
                loss_sum += self._accumulate(part)
                if part.last:
                    self._update(lr(len(self.losses)))
                    self.losses.append(loss_sum / part.step_samples)
                    loss_sum = 0.0
                report.tell(f"epoch {epoch + 1} of {task.epochs}, step", part.step + 1, steps)
        return time.monotonic() - start_s

    def _accumulate(self, part: MicroBatch) -> float:
        """Adds the gradients of sum(losses) / effective batch; returns sum(losses)."""
        images = torch.from_numpy(next(iter(part.inputs.values()))[: part.samples])
        target = torch.from_numpy(soft_targets(part.targets, self.classes,
                                               self.task.label_smoothing))
        loss = -(target * functional.log_softmax(self.model(images), dim=1)).sum()
        torch.autograd.backward([loss / self.recipe.effective_batch])
        return float(loss.detach())

    def _update(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self, data: DataSet, report: Reporter) -> tuple[float, float]:
        """Top-1 (0..1) and mean cross-entropy."""
        micro, hits, loss = self.micro_batch, 0, 0.0
        count = steps_per_epoch(len(data), micro)
        for part in batches(data, micro, micro, shuffle=False, augment=False):
            logits = self.model(torch.from_numpy(next(iter(part.inputs.values()))[: part.samples]))
            labels = torch.from_numpy(part.targets)
            hits += int((logits.argmax(dim=1) == labels).sum())
            loss += float(functional.cross_entropy(logits.double(), labels, reduction="sum"))
            report.tell("test", part.step + 1, count)
        return hits / len(data), loss / len(data)


def train(task: Task) -> Outcome:
    """Trains the twin and evaluates it."""
    torch.set_num_threads(task.threads)
    bundle = Bundle.open(task.bundle, verify=False)
    model = twin(load_file(task.weights), start_values(bundle, task.seed))
    error = features_error(model, task.features)
    if not error <= FEATURES_TOLERANCE:
        sys.exit(f"error: features differ from ONNX Runtime's by {error:.1e}, "
                 f"{FEATURES_TOLERANCE:.0e} allowed")
    data, test = training_data(task, bundle), evaluation_data(task, bundle)
    training, report = Training(model, task, bundle), Reporter(task)
    train_s = training.run(data, report)
    start_s = time.monotonic()
    top1, test_loss = training.evaluate(test, report)
    return Outcome(
        configuration=task.configuration, seed=task.seed, top1=top1, test_loss=test_loss,
        test_images=len(test), losses=tuple(training.losses),
        trained_images=task.epochs * len(data), train_s=train_s,
        test_s=time.monotonic() - start_s, peak_bytes=read_memory().peak_rss_bytes,
        load_average=os.getloadavg()[1],
        tuned_numbers=sum(p.numel() for p in model.parameters() if p.requires_grad),
        features_error=error)


if __name__ == "__main__":
    print(train(read_task()).to_json())
