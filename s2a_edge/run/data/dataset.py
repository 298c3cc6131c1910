"""What the training loop knows of a data set: samples by index, written into rows it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from s2a_edge.run.data.dtypes import Row, Targets
from s2a_edge.spec.manifest import AnyPreprocessing, InputSpec, Task


@dataclass(frozen=True)
class DataCheck:
    """What a pass over a data set found, for the memory budget.

    Attributes:
        samples: how many samples there are.
        decode_bytes: the most bytes that decoding one sample takes; one is decoded at a time.
        largest: the sample that takes them; empty where nothing is decoded.
    """

    samples: int
    decode_bytes: int
    largest: str


class DataTerms(Protocol):
    """What data must suit: a manifest, or the part of one that exists while a bundle is packed."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The data inputs."""

    @property
    def preprocessing(self) -> AnyPreprocessing | None:
        """Of images or texts; None for other data."""

    @property
    def task(self) -> Task:
        """Labels and classes."""


class DataSet(Protocol):
    """Labelled samples, read one at a time; none is kept."""

    @property
    def path(self) -> Path:
        """Where it came from."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The data inputs of the bundle that it serves."""

    @property
    def targets(self) -> Targets:
        """What every sample is, in the form of :mod:`s2a_edge.run.data.targets`."""

    @property
    def resident_bytes(self) -> int:
        """Bytes it holds as long as it is open: targets, file names, unpacked arrays."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of names and targets: a run resumes only on the data that it began with."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """A sample's name, for messages."""

    def load(
        self, index: int, out: Mapping[str, Row], rng: np.random.Generator | None = None
    ) -> None:
        """Write one sample.

        Args:
            index: 0..N-1.
            out: by input name, a writable C-contiguous array of the input's dtype and shape
                (without the batch); overwritten.
            rng: the sample's random stream for augmentation; none for evaluation's view.

        Raises:
            DataError: the sample cannot be read; names it.
        """

    def check(self) -> DataCheck:
        """Look at every sample as far as that is cheap (headers, sizes; nothing is decoded).

        Raises:
            DataError: samples cannot be used; names the first few of them.
        """
