"""Samples for the packer: those that evaluation would read."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s2a_edge.run.calibration_samples import write_samples
from s2a_edge.run.data import open_data
from s2a_edge.spec.calibration import CalibrationRequest
from s2a_edge.spec.errors import BundleError, DataError
from tests.run.data.samples import manifest, write_folders


@pytest.fixture
def request_of_four(tmp_path: Path) -> CalibrationRequest:
    terms = manifest()
    write_folders(tmp_path / "data", {"cat": 3, "dog": 6})
    return CalibrationRequest(str(tmp_path / "data"), 4, 7, terms.inputs, terms.preprocessing,
                              terms.task, str(tmp_path / "out.npz"))


def test_samples_are_as_evaluation_reads_them(request_of_four: CalibrationRequest) -> None:
    assert write_samples(request_of_four) == (4, 9)
    data = open_data(request_of_four.data, request_of_four)
    everything = np.zeros((9, 3, 16, 16), np.float32)
    for index, row in enumerate(everything):
        data.load(index, {"image": row})
    with np.load(request_of_four.out) as archive:
        found = [int(np.flatnonzero((everything == image).all((1, 2, 3)))[0])
                 for image in archive["image"]]
        assert len(set(found)) == 4
        assert archive["s2a.targets"].argmax(1).tolist() == data.targets[found].tolist()


def test_the_seed_decides(request_of_four: CalibrationRequest) -> None:
    def drawn(seed: int) -> bytes:
        write_samples(replace(request_of_four, seed=seed))
        with np.load(request_of_four.out) as archive:
            return bytes(archive["image"].tobytes())

    assert drawn(1) == drawn(1) != drawn(2)


def test_less_data_than_asked_for_is_taken_whole(request_of_four: CalibrationRequest) -> None:
    assert write_samples(replace(request_of_four, samples=50)) == (9, 9)


def test_a_request_survives_json(request_of_four: CalibrationRequest) -> None:
    assert CalibrationRequest.from_json(request_of_four.to_json()) == request_of_four
    with pytest.raises(BundleError, match="calibration request"):
        CalibrationRequest.from_json("{}")


def test_errors_are_answers(request_of_four: CalibrationRequest) -> None:
    gone = replace(request_of_four, data="gone")
    with pytest.raises(DataError):
        write_samples(gone)
    done = subprocess.run([sys.executable, "-m", "s2a_edge.run.calibration_samples"],
                          input=gone.to_json(), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["error"], answer["where"]) == (False, "DataError", "gone")
