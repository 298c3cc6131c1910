"""The samples that a pack measures gradients on, as its options say."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from s2a_edge.pack.calibration import Samples, noise, read_samples
from s2a_edge.pack.capture import Backbone
from s2a_edge.pack.interface import input_specs, task
from s2a_edge.pack.options import PackOptions
from s2a_edge.spec.calibration import CalibrationRequest
from s2a_edge.spec.text_inputs import TOKENIZER_NAME


def calibration_samples(backbone: Backbone, options: PackOptions,
                        on_stage: Callable[[str, str], None], tokenizer: Path | None = None,
                        ) -> Samples:
    """Real data where ``options`` name some, else noise.

    Args:
        backbone: what the samples are for.
        options: of the pack.
        on_stage: told that data are read.
        tokenizer: file of the source's tokenizer, for texts.

    Raises:
        DataError: the data cannot be read, or does not suit the backbone.
    """
    if options.calibration is None:
        return noise(options.seed, options.loss)
    on_stage("calibrate", f"at most {options.calibration_samples} samples of "
             f"{options.calibration.name}")
    with tempfile.TemporaryDirectory(prefix="s2a-calibration-") as folder:
        if tokenizer is not None:
            shutil.copyfile(tokenizer, Path(folder) / TOKENIZER_NAME)
        return read_samples(CalibrationRequest(
            data=str(options.calibration), samples=options.calibration_samples,
            seed=options.seed, inputs=input_specs(backbone),
            preprocessing=backbone.preprocessing, task=task(options),
            out=str(Path(folder) / "calibration.npz"), folder=folder))
