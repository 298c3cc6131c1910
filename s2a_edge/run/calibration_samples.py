"""Reads a few samples as evaluation would, for the packer to measure gradients on.

``python -m s2a_edge.run.calibration_samples`` reads one
:class:`~s2a_edge.spec.calibration.CalibrationRequest` on stdin, writes its ``.npz``, and prints
``{"ok": true, "samples": n, "of": N}`` or ``{"ok": false, ...}`` with the fields of an error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from s2a_edge.run.data import epoch_order, open_data
from s2a_edge.run.loss_inputs import LossInputs
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.calibration import CALIBRATION_TARGETS, CalibrationRequest
from s2a_edge.spec.errors import S2AError
from s2a_edge.spec.task_ports import REGRESSION_LOSSES, TARGET


def write_samples(request: CalibrationRequest) -> tuple[int, int]:
    """Writes the samples; returns how many, and how many there are.

    Samples are drawn without replacement from all of the data.

    Raises:
        DataError: the data cannot be read, or does not suit the backbone.
    """
    folder = None if request.folder is None else Path(request.folder)
    data = open_data(request.data, request, folder)
    chosen = epoch_order(len(data), request.seed, 0)[: request.samples]
    arrays: dict[str, Any] = {
        spec.name: np.zeros((len(chosen), *spec.shape), spec.dtype) for spec in request.inputs
    }
    for row, index in enumerate(chosen.tolist()):
        data.load(index, {name: array[row] for name, array in arrays.items()})
    scaling = TargetScaling.of(data.targets) if request.task.loss in REGRESSION_LOSSES else None
    rows = LossInputs(request.task, 1, scaling=scaling).rows(data.targets[chosen], 1.0)
    if TARGET in rows:
        arrays[CALIBRATION_TARGETS] = rows[TARGET]
    np.savez(Path(request.out), **arrays)
    return len(chosen), len(data)


def main() -> int:
    """Serves one request."""
    try:
        samples, available = write_samples(CalibrationRequest.from_json(sys.stdin.read()))
    except S2AError as error:
        print(json.dumps({"ok": False, **error.as_dict()}))
        return 0
    print(json.dumps({"ok": True, "samples": samples, "of": available}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
