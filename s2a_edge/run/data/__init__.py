"""Data for training and evaluation: image folders and ``.npz`` arrays, one sample at a time.

numpy and Pillow only. Nothing here holds a data set: what stays in memory is
:attr:`DataSet.resident_bytes` (names, labels), :func:`input_buffer_bytes` (the batch) and
:attr:`DataCheck.decode_bytes` (one image while it is decoded).
"""

from __future__ import annotations

from s2a_edge.run.data.arrays import ArrayDataSet
from s2a_edge.run.data.augmentation import Augmentation, epoch_order
from s2a_edge.run.data.batches import (
    BatchBuffer,
    MicroBatch,
    batches,
    input_buffer_bytes,
    steps_per_epoch,
)
from s2a_edge.run.data.dataset import DataCheck, DataSet, DataTerms
from s2a_edge.run.data.image_folder import ImageFolder
from s2a_edge.run.data.open_data import open_data
from s2a_edge.run.data.targets import soft_targets

__all__ = [
    "ArrayDataSet",
    "Augmentation",
    "BatchBuffer",
    "DataCheck",
    "DataSet",
    "DataTerms",
    "ImageFolder",
    "MicroBatch",
    "batches",
    "epoch_order",
    "input_buffer_bytes",
    "open_data",
    "soft_targets",
    "steps_per_epoch",
]
