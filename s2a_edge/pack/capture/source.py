"""What a SOURCE argument means: an ``.onnx`` file, ``timm:``, ``hf:`` or ``module:factory``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from s2a_edge.spec.errors import SourceError

SourceKind = Literal["onnx", "timm", "hf", "factory"]

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_FORMS = "FILE.onnx, timm:NAME, hf:FOLDER_OR_CONFIG.json or package.module:factory"


@dataclass(frozen=True)
class SourceSpec:
    """A parsed SOURCE: ``name`` is the path, model name or ``module:factory``."""

    kind: SourceKind
    name: str


def parse_source(spec: str) -> SourceSpec:
    """Splits a SOURCE into its kind and name.

    Raises:
        SourceError: if it has none of the four forms.
    """
    text = spec.strip()
    prefix, _, rest = text.partition(":")
    if prefix in ("timm", "hf") and rest:
        return SourceSpec("timm" if prefix == "timm" else "hf", rest)
    if text.lower().endswith(".onnx"):
        return SourceSpec("onnx", text)
    if prefix not in ("timm", "hf") and _FACTORY.fullmatch(text):
        return SourceSpec("factory", text)
    raise SourceError(where=f"SOURCE {spec!r}", expected=_FORMS, got=repr(spec),
                      todo="name the backbone in one of these forms")
