"""The request for calibration samples: packer to the board's data code, as JSON.

The packer must not import the code that reads data on a board, and must see exactly what that code
would see. So it asks for samples in a process of its own
(``python -m s2a_edge.run.calibration_samples``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from s2a_edge.spec import strict_json
from s2a_edge.spec.manifest import InputSpec, Preprocessing, Task, Text, TextPreprocessing
from s2a_edge.spec.strict_json import Length, Span

MAX_SAMPLES = 65_536
CALIBRATION_TARGETS = "s2a.targets"  # no input of a graph is called so by any exporter


@dataclass(frozen=True)
class CalibrationRequest:
    """Which samples to read, and how.

    Attributes:
        data: a folder of class folders, or an ``.npz``.
        samples: at most so many.
        seed: decides which; the same seed, the same samples.
        inputs: data inputs of the graphs.
        preprocessing: of images or texts.
        task: loss, labels and classes.
        out: ``.npz`` to write: every input [n, *shape] by its name, and as
            :data:`CALIBRATION_TARGETS` the rows [n, C] that the loss takes, if it takes any.
        folder: where the tokenizer of texts is.
    """

    data: Text
    samples: Annotated[int, Span(1, MAX_SAMPLES)]
    seed: Annotated[int, Span(0, 2**63 - 1)]
    inputs: Annotated[tuple[InputSpec, ...], Length(1, 64)]
    preprocessing: Preprocessing | TextPreprocessing | None
    task: Task
    out: Text
    folder: Text | None = None

    def to_json(self) -> str:
        """One line."""
        return json.dumps(strict_json.plain(self))

    @classmethod
    def from_json(cls, text: str) -> CalibrationRequest:
        """The inverse of :meth:`to_json`.

        Raises:
            BundleError: it is not such a request.
        """
        name = "calibration request"
        return strict_json.read(cls, strict_json.parse(text, where=name), file=name)


__all__ = ["CALIBRATION_TARGETS", "MAX_SAMPLES", "CalibrationRequest"]
