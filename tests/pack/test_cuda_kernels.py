"""Every node that is written, with its types, has a CUDA kernel in every version of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.cuda_kernels import (
    Signature,
    kernels,
    signature,
    versions,
    versions_with,
    without_kernel,
)
from tests.pack.emitted import (
    RECIPES,
    Models,
    of_codecs,
    of_frozen,
    of_operators,
    of_recipe,
    recipe_id,
)
from tools.cuda_kernel_table import documented, merged

# JetPack 6 and 7 run 1.22 to 1.25; one newer shows what is to come.
_REQUIRED = {"1.22", "1.23", "1.24", "1.25"}


def _lacking(models: Models) -> list[str]:
    return [f"{name}: {node} lacks {', '.join(missing)}" for name, model in models
            for node, missing in without_kernel([model]).items()]


def test_the_table_has_the_versions_that_boards_run() -> None:
    assert set(versions()) >= _REQUIRED
    for version in versions():
        assert any(version in kernel.versions for rows in kernels().values() for kernel in rows)


@pytest.mark.parametrize("recipe", RECIPES, ids=recipe_id)
def test_graphs_of_a_bundle(recipe: tuple[str, dict[str, Any]]) -> None:
    assert _lacking(of_recipe(recipe)) == []


def test_codecs() -> None:
    assert _lacking(of_codecs()) == []


def test_operators() -> None:
    """Windows that do not cover the padding evenly have gradients of which CUDA has none."""
    assert {name for name in _lacking(of_operators()) if "with unequal pads" not in name} == set()


def test_unequal_padding_is_left_to_the_cpu() -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (1, 3, 8, 8))
    weight = g.initializer("w", np.ones((3, 3, 3, 3), np.float32))
    model = model_of([x], [g.op("Conv", g.op("Conv", x, weight, pads=[1, 1, 1, 1]), weight,
                                pads=[0, 0, 1, 1])], g, "g")
    assert [name.partition(":")[0] for name in without_kernel([model])] == ["n_Conv_1"]


def test_frozen_weights() -> None:
    found = {storage: without_kernel([model]) for storage, model in of_frozen()}
    assert found["fp16"] == {}
    assert any("BitwiseAnd" in node for node in found["int4"])


def _shift() -> ir.Model:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.UINT8, (4,))
    y = g.op("BitShift", x, g.constant(np.array([1], np.uint8)), direction="LEFT", name="shift")
    return model_of([x], [g.op("BitwiseAnd", y, y)], g, "g")


def test_what_the_provider_lacks_is_named_with_its_versions() -> None:
    missing = without_kernel([_shift()])
    assert [name.partition(":")[0] for name in missing] == ["n_shift", "n_BitwiseAnd"]
    assert set(missing.popitem()[1]) == set(versions())


def test_a_kernel_without_an_end_serves_one_form_of_the_operator_only() -> None:
    """As in the runtime: Reshape 19+ of 1.22 is no kernel for Reshape of opset 21."""
    types = (("T", "float"),)
    assert {"1.22", "1.23"}.isdisjoint(versions_with(Signature("", "Reshape", 21, types)))
    assert {"1.24", "1.25"} <= versions_with(Signature("", "Reshape", 21, types))
    assert versions_with(Signature("", "Reshape", 14, types)) >= _REQUIRED


@pytest.mark.parametrize(("op_type", "dtype"), [("Less", "uint8"), ("Mod", "int8")])
def test_types_count(op_type: str, dtype: str) -> None:
    since = {"Less": 13, "Mod": 13}[op_type]
    assert versions_with(Signature("", op_type, since, (("T", dtype),))) == frozenset()
    assert versions_with(Signature("", op_type, since, (("T", "float"),))) >= _REQUIRED


def test_the_signature_of_a_gelu_is_that_of_the_runtimes_domain() -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (2, 4))
    node = g.op("Gelu", x, approximate="tanh").producer()
    assert node is not None
    assert signature(node) == Signature("com.microsoft", "FastGelu", 1, (("T", "float"),))
    assert signature(node, 21) == Signature("", "Gelu", 20, (("T", "float"),))


_DOCUMENT = """
## Operators implemented by CPUExecutionProvider
|**Operator Domain:** *ai.onnx*||||
|BitShift|*in* X:**T**|11+|**T** = tensor(uint8)|
## Operators implemented by CUDAExecutionProvider
| Op Name | Parameters | OpSet Version | Types Supported |
|**Operator Domain:** *ai.onnx*||||
|Cast|*in* input:**T1**<br> *out* output:**T2**|19+|**T1** = tensor(float)<br/> **T2** = tensor(int8), tensor(uint8)|
|||[13, 18]|**T1** = tensor(float)<br/> **T2** = tensor(int8)|
|||[6, 12]|**T1** = tensor(float)<br/> **T2** = tensor(int8)|
|**Operator Domain:** *com.microsoft*||||
|Gelu|*in* X:**T**<br> *out* Y:**T**|1+|**T** = tensor(float)|
|**Operator Domain:** *com.ms.internal.nhwc*||||
|Conv|*in* X:**T**|11+|**T** = tensor(float)|
## Operators implemented by DmlExecutionProvider
|**Operator Domain:** *ai.onnx*||||
|BitShift|*in* X:**T**|11+|**T** = tensor(uint8)|
"""  # noqa: E501  # lines of the real document are longer


def test_a_document_becomes_rows_of_the_table() -> None:
    rows = documented(_DOCUMENT)
    assert rows == {
        ("", "Cast", 19, None): [{"T1": {"float"}, "T2": {"int8", "uint8"}}],
        ("", "Cast", 13, 18): [{"T1": {"float"}, "T2": {"int8"}}],
        ("com.microsoft", "Gelu", 1, None): [{"T": {"float"}}],
    }
    table = merged(merged({}, "1.2", "a", rows), "1.3", "b", rows)
    assert table["versions"] == {"1.2": "a", "1.3": "b"}
    assert ["", "Cast", 13, 18, {"T1": "float", "T2": "int8"}, "1.2 1.3"] in table["kernels"]  # type: ignore[operator]  # a list
    fewer = merged(table, "1.3", "c", {})
    assert ["", "Cast", 13, 18, {"T1": "float", "T2": "int8"}, "1.2"] in fewer["kernels"]  # type: ignore[operator]  # a list
    with pytest.raises(ValueError, match="no section"):
        documented("## Operators implemented by CPUExecutionProvider\n")
