"""Short names of the array types that data is handed around in."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

U8: TypeAlias = NDArray[np.uint8]
F32: TypeAlias = NDArray[np.float32]
I64: TypeAlias = NDArray[np.int64]
Row: TypeAlias = NDArray[Any]
"""One sample of one input: a view into the batch buffer, of the input's dtype and shape."""
Targets: TypeAlias = NDArray[Any]
"""What samples are, one row each; which form a task has says :mod:`s2a_edge.run.data.targets`."""
