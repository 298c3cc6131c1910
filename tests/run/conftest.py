"""Fixtures of the run side's tests: a toy bundle and samples for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run.toy_bundle import write_samples, write_toy_bundle


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle folder: micro-batches 1 and 2, effective batch 4, AdamW. Not to be changed."""
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="session")
def train_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """38 training samples: nine whole steps and a ragged one. Not to be changed."""
    return write_samples(tmp_path_factory.mktemp("train") / "train.npz", 38)


@pytest.fixture(scope="session")
def val_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 validation samples. Not to be changed."""
    return write_samples(tmp_path_factory.mktemp("val") / "val.npz", 21, seed=2)
