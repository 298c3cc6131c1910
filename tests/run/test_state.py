from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.run.device_tensor import DeviceTensor
from s2a_edge.run.state import TrainingState
from s2a_edge.spec.errors import CheckpointError
from s2a_edge.spec.manifest import Trainable

TRAINABLES = (
    Trainable("a.bias", (3,), "bias", "a", False, 12),
    Trainable("head.weight", (3, 2), "head_weight", "head", True, 24),
)


def filled(optimizer: str = "adamw") -> TrainingState:
    state = TrainingState(TRAINABLES, optimizer)
    tensors = state.inputs("param", "acc", *state.slots).values()
    for number, tensor in enumerate(tensors, start=1):
        tensor.write(number)
    return state


@pytest.mark.parametrize(("optimizer", "roles"), [("adamw", 4), ("sgd", 3)])
def test_its_size_is_all_roles_together(optimizer: str, roles: int) -> None:
    # Two trainables of less than 64 numbers, each at a boundary of 256 bytes.
    assert filled(optimizer).size_bytes == roles * 2 * 256


def test_inputs_and_outputs_are_the_same_memory() -> None:
    state = filled()
    inputs, outputs = state.inputs("acc"), state.outputs("acc")
    assert list(outputs) == ["acc_out.a.bias", "acc_out.head.weight"]
    for name, tensor in inputs.items():
        assert outputs[name.replace("acc.", "acc_out.")].address == tensor.address


def test_a_snapshot_brings_back_everything_but_gradients() -> None:
    state = filled()
    before = state.snapshot()
    assert sorted(before) == sorted(state.inputs("param", "m", "v"))
    for tensor in state.inputs("param", "acc", "m", "v").values():
        tensor.write(99)
    state.restore(before)
    after = state.snapshot()
    assert all(np.array_equal(after[key], before[key]) for key in before)
    assert all(not tensor.read().any() for tensor in state.inputs("acc").values())


def test_a_snapshot_is_a_copy() -> None:
    state = filled()
    snapshot = state.snapshot()
    state.inputs("param")["param.a.bias"].write(5)
    assert np.all(snapshot["param.a.bias"] == 1)


def test_new_parameters_start_with_a_fresh_optimizer() -> None:
    state = filled()
    values = {"a.bias": np.ones(3, np.float32), "head.weight": np.ones((3, 2), np.float32)}
    state.load_parameters(values, where="here")
    assert all(np.all(v == 1) for v in state.read("param").values())
    assert not any(v.any() for role in ("acc", "m", "v") for v in state.read(role).values())


def test_what_does_not_belong_is_refused_and_nothing_is_changed() -> None:
    state = filled()
    before = state.snapshot()
    wrong = dict(before)
    wrong["param.a.bias"] = np.zeros((4,), np.float32)
    wrong["m.a.bias"] = before["m.a.bias"].astype(np.float64)
    del wrong["v.head.weight"]
    wrong["param.other"] = np.zeros(1, np.float32)
    with pytest.raises(CheckpointError) as caught:
        state.restore(wrong, where="last.safetensors")
    for part in (
        "last.safetensors",
        "m.a.bias is float64[3], not float32[3]",
        "param.a.bias is float32[4], not float32[3]",
        "param.other is unknown",
        "v.head.weight is missing",
    ):
        assert part in str(caught.value)
    assert all(np.array_equal(state.snapshot()[key], before[key]) for key in before)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_device_tensor_starts_at_zero_and_keeps_its_memory(shape: tuple[int, ...]) -> None:
    tensor = DeviceTensor(shape, np.float32)
    address = tensor.address
    assert not tensor.read().any()
    tensor.write(np.full(shape, 2.5))
    assert np.all(tensor.read() == 2.5)
    assert np.all(tensor.ort_value.numpy() == 2.5)
    tensor.zero()
    assert not tensor.ort_value.numpy().any()
    assert tensor.address == address
    assert tensor.size_bytes == 4 * int(np.prod(shape))
