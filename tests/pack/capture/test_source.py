from __future__ import annotations

import pytest

from s2a_edge.pack.capture import parse_source
from s2a_edge.spec.errors import SourceError


@pytest.mark.parametrize(("spec", "kind", "name"), [
    ("model.onnx", "onnx", "model.onnx"),
    ("a/b c/Model.ONNX", "onnx", "a/b c/Model.ONNX"),
    ("timm:resnet18", "timm", "resnet18"),
    ("timm:vit_tiny_patch16_224.augreg_in21k", "timm", "vit_tiny_patch16_224.augreg_in21k"),
    ("hf:./folder", "hf", "./folder"),
    ("hf:org/model.onnx", "hf", "org/model.onnx"),
    ("package.module:factory", "factory", "package.module:factory"),
    ("module:Class.build", "factory", "module:Class.build"),
])
def test_forms(spec: str, kind: str, name: str) -> None:
    parsed = parse_source(spec)
    assert (parsed.kind, parsed.name) == (kind, name)


@pytest.mark.parametrize("spec", ["", "resnet18", "timm:", "hf:", "model.pth", "a b:c", "x:1y"])
def test_other_forms_are_refused(spec: str) -> None:
    with pytest.raises(SourceError, match=r"FILE\.onnx, timm:NAME"):
        parse_source(spec)
