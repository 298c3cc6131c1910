"""The gradient oracle's own side: the uncompressed step, without onnxruntime-training."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.pack.compiled import captured
from tools.ort_training_oracle import Ours


def test_the_step_that_is_compared_gives_a_gradient_for_each_trainable() -> None:
    ours = Ours(captured("tiny_resnet"), None)
    made = ours.gradients(ours.inputs(0))
    assert made.keys() == ours.initial.keys()
    assert all(value.shape == ours.initial[name].shape for name, value in made.items())
    assert any(value.any() for value in made.values())
