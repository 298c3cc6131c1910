"""The texts are what onnxruntime 1.19.2, 1.22.1, 1.23.2 and 1.32.0 were seen to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2a_edge.run.runtime_errors import load_error, run_error
from s2a_edge.spec.errors import (
    BudgetError,
    BundleError,
    DataError,
    DeviceError,
    InternalError,
)

NEW = (
    "Error in execution: Non-zero status code returned while running Relu node. "
    "Name:'my/relu_3' Status Message: bfc_arena.cc:360 void* onnxruntime::BFCArena::"
    "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Available memory of 1000 is smaller "
    "than requested bytes of 4194304\n"
)
OLD = NEW.replace(
    "Status Message: ",
    "Status Message: op_kernel.cc:83 virtual OrtValue* onnxruntime::OpKernelContext::"
    "OutputMLValue(int, const onnxruntime::TensorShape&) status.IsOK() was false. ",
)


@pytest.mark.parametrize("text", [NEW, OLD], ids=["1.22 and newer", "1.19"])
def test_an_exhausted_arena_names_node_and_bytes(text: str) -> None:
    error = run_error(RuntimeError(text), "train_b8")
    assert isinstance(error, BudgetError)
    assert error.where == "train_b8: node 'my/relu_3' (Relu)"
    assert error.got == "4194304 bytes asked for with 1000 bytes left to grow"
    assert error.missing_bytes == 4193304


def test_an_index_that_no_table_has_is_the_datas_fault() -> None:
    text = (
        "Error in execution: Non-zero status code returned while running Gather node. "
        "Name:'n_embedding' Status Message: indices element out of data bounds, idx=999 must be "
        "within the inclusive range [-12,11]"
    )
    error = run_error(RuntimeError(text), "train_b8")
    assert isinstance(error, DataError)
    assert error.where == "train_b8: node 'n_embedding' (Gather)"
    assert "indices up to 11" in error.expected and error.got == "999"


@pytest.mark.parametrize(
    ("text", "missing_bytes"),
    [
        ("Failed to allocate memory for requested buffer of size 1048576", 1048576),
        ("CUDA failure 2: out of memory ; GPU=0", 0),
        ("std::bad_alloc", 0),
    ],
)
def test_other_ways_to_run_out_are_the_same_error(text: str, missing_bytes: int) -> None:
    error = run_error(RuntimeError(text), "eval")
    assert isinstance(error, BudgetError)
    assert error.missing_bytes == missing_bytes


def test_pythons_own_memory_error_too() -> None:
    assert isinstance(run_error(MemoryError(), "eval"), BudgetError)


def test_anything_else_while_running_is_our_bug() -> None:
    error = run_error(RuntimeError("\n  Invalid argument: rank 3\nstack ..."), "eval")
    assert isinstance(error, InternalError)
    assert error.got == "Invalid argument: rank 3"


def test_loading_tells_a_bad_file_from_a_device_and_a_limit() -> None:
    path = Path("bundle/eval.onnx")
    assert isinstance(load_error(RuntimeError("Protobuf parsing failed."), path), BundleError)
    assert isinstance(load_error(RuntimeError(NEW), path), BudgetError)
    fallback = "This session contains graph nodes that are assigned to the default CPU EP, but "
    fallback += "fallback to CPU EP has been explicitly disabled by the user."
    assert isinstance(load_error(RuntimeError(fallback), path), DeviceError)
