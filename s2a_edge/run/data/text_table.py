"""Texts listed in a CSV file with what they are, turned into token ids one at a time.

The tokenizer is the bundle's own, run by the ``tokenizers`` library, an optional dependency
(``pip install 's2a-edge[text]'``).
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s2a_edge.run.data.dataset import DataCheck, DataTerms
from s2a_edge.run.data.decoding import printable
from s2a_edge.run.data.dtypes import Row
from s2a_edge.run.data.label_table import TEXT_COLUMNS, read_label_table
from s2a_edge.run.process_memory import read_memory
from s2a_edge.spec.errors import BundleError, DeviceError
from s2a_edge.spec.manifest import InputSpec, TextPreprocessing
from s2a_edge.spec.text_inputs import MASK_INPUT, TOKENS_INPUT, TYPES_INPUT


class TextTable:
    """A :class:`~s2a_edge.run.data.dataset.DataSet` over the rows of a CSV file of texts.

    Samples are in the order of the file. The texts are held in memory; tokens are made when a
    sample is asked for: cut off behind ``max_length``, the rest padded and masked.

    Args:
        path: the CSV file; :mod:`s2a_edge.run.data.label_table` says what it holds.
        manifest: of the bundle: its task and its inputs.
        spec: how texts become tokens.
        tokenizer: the ``tokenizer.json``.

    Raises:
        DataError: the file cannot be used.
        DeviceError: the ``tokenizers`` library is not installed.
        BundleError: that library cannot read the tokenizer.
    """

    def __init__(
        self, path: Path, manifest: DataTerms, spec: TextPreprocessing, tokenizer: Path
    ) -> None:
        self.path = path
        self.inputs: tuple[InputSpec, ...] = manifest.inputs
        table = read_label_table(path, manifest.task, TEXT_COLUMNS)
        self.targets = table.targets
        self._texts, self._lines, self._spec = table.samples, table.lines, spec
        before_bytes = read_memory().anon_bytes
        self._tokenizer = load_tokenizer(tokenizer, spec.max_length)
        self._tokenizer_bytes = max(0, read_memory().anon_bytes - before_bytes)

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def resident_bytes(self) -> int:
        """Bytes of texts and targets, and of the tokenizer where this is the first to load it."""
        texts_bytes = sum(sys.getsizeof(text) + 8 for text in self._texts)
        return self.targets.nbytes + texts_bytes + self._tokenizer_bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of texts and targets."""
        digest = hashlib.sha256(self.targets.tobytes())
        for text in self._texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """File and line."""
        return f"{printable(self.path.name)}, line {self._lines[index]}"

    def load(
        self, index: int, out: Mapping[str, Row], rng: np.random.Generator | None = None
    ) -> None:
        """Write one sample's tokens; ``rng`` is not used. See :meth:`DataSet.load`."""
        encoded = self._tokenizer.encode(self._texts[index])
        count = len(encoded.ids)
        values = {TOKENS_INPUT: encoded.ids, MASK_INPUT: 1, TYPES_INPUT: encoded.type_ids}
        for name, row in out.items():
            row[count:] = self._spec.pad_id if name == TOKENS_INPUT else 0
            row[:count] = values[name]

    def check(self) -> DataCheck:
        """Nothing to look at before it is read: any text has tokens."""
        return DataCheck(len(self), 0, "")


@functools.lru_cache(maxsize=1)
def load_tokenizer(path: Path, max_length: int) -> Any:
    """A tokenizer that cuts texts off behind ``max_length`` tokens and pads none.

    Training and validation data share one: its vocabulary may take tens of megabytes.

    Raises:
        DeviceError: the ``tokenizers`` library is not installed.
        BundleError: it cannot read the file.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DeviceError(
            where="data of texts",
            expected="the tokenizers library",
            got=str(error),
            todo="pip install 's2a-edge[text]', or give the data as an .npz of token ids",
        ) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:
        if type(error) is not Exception:  # what the library raises has no type of its own
            raise
        raise BundleError(
            where=path.name,
            expected="a tokenizer that this version of the tokenizers library reads",
            got=str(error)[:200],
            todo="update the tokenizers library, or give the data as an .npz of token ids",
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer
