"""What gradients are measured on: batches of data, or noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.calibration import NOISE, Samples, noise, read_samples
from s2a_edge.spec.calibration import CalibrationRequest
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import Calibration, InputSpec, Task
from tests.pack.compiled import compiled, parameters


@pytest.fixture
def data(tmp_path: Path) -> Samples:
    """Ten samples for the tiny ViT; sample i is all i."""
    images = np.broadcast_to(np.arange(10, dtype=np.float32)[:, None, None, None], (10, 3, 16, 16))
    np.savez(tmp_path / "data.npz", image=np.ascontiguousarray(images), labels=np.arange(10) % 5)
    return read_samples(CalibrationRequest(
        str(tmp_path / "data.npz"), 6, 0, (InputSpec("image", "float32", (3, 16, 16), "image"),),
        None, Task("cross_entropy", 5, ()), str(tmp_path / "read.npz")))


def test_batches_follow_one_another_and_labels_follow_their_samples(data: Samples) -> None:
    made = compiled("tiny_vit")
    model = made.steps[4].model
    initial = {t.name: t.initial for t in made.trainables}
    assert data.targets is not None and len(data) == len(data.targets) == 6
    assert (data.batches(4), data.batches(2), data.batches(8)) == (1, 3, 1)
    for number, rows in ((0, [0, 1, 2, 3]), (1, [4, 5, 0, 1])):
        feeds = data.feeds(model, initial, number)
        np.testing.assert_array_equal(feeds["image"], data.inputs["image"][rows])
        np.testing.assert_array_equal(feeds["target"], data.targets[rows])
        samples = feeds["image"][:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(feeds["target"].argmax(1), samples % 5)
        assert set(feeds) == {v.name for v in model.graph.inputs}
        for name, value in parameters(made).items():
            np.testing.assert_array_equal(feeds[name], value)
    assert data.record(4) == Calibration("data.npz", 4)
    assert data.record(2) == Calibration("data.npz", 6)


def test_noise_is_the_seeds_and_differs_between_batches() -> None:
    made = compiled("tiny_vit")
    model = made.steps[4].model
    initial = {t.name: t.initial for t in made.trainables}
    first, again = (noise(3).feeds(model, initial)["image"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.std() == pytest.approx(1, rel=1e-3)
    for other in (noise(4).feeds(model, initial), noise(3).feeds(model, initial, 1)):
        assert not np.array_equal(first, other["image"])
    assert noise(3).record(4) == Calibration(NOISE, 4)


def test_noise_for_a_text_is_tokens_that_differ_and_a_mask_of_ones() -> None:
    g = GraphBuilder()
    ids, mask = (g.input(name, ir.DataType.INT64, (4, 16)) for name in ("ids", "mask"))
    table = g.initializer("table", np.zeros((7, 3), np.float32))
    small = g.initializer("small", np.zeros((3, 5), np.float32))
    rows = [g.op("Gather", table, ids), g.op("Gather", small, ids, axis=1)]
    model = model_of([ids, mask], [*rows, g.op("Neg", mask)], g, "text")
    feeds = noise(0).feeds(model, {})
    assert set(feeds["ids"].ravel()) == set(range(5)) and (feeds["mask"] == 1).all()
    assert feeds["ids"].dtype == feeds["mask"].dtype == np.int64


def test_data_that_cannot_be_read_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--calibration: .*gone"):
        read_samples(CalibrationRequest("gone", 1, 0, (InputSpec("x", "float32", (2,), "tensor"),),
                                        None, Task("cross_entropy", 2, ()),
                                        str(tmp_path / "out.npz")))
