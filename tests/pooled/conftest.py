"""A small convolutional backbone, packed with a pool and without, and samples for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s2a_edge.pack import training_steps
from s2a_edge.pack.build import pack
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import pool as pools

SOURCE = "tests.pack.models:tiny_resnet"
OPTIONS = PackOptions(labels=("a", "b", "c"), micro_batches=(4, 1), effective_batch=4)


@contextmanager
def small_pools() -> Iterator[None]:
    """Models as small as the tests' get a pool too: it saves nothing, and that is all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_steps, "pays", lambda model, runtime: True)
        patch.setattr(pools, "_LEAST_BYTES", 256)
        yield


@pytest.fixture(scope="session")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle folder whose training steps have pools. Not to be changed."""
    with small_pools():
        return pack(SOURCE, tmp_path_factory.mktemp("pooled") / "bundle", OPTIONS).path


@pytest.fixture(scope="session")
def unpooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with everything in the runtime's arena. Not to be changed."""
    options = replace(OPTIONS, places="arena")
    return pack(SOURCE, tmp_path_factory.mktemp("unpooled") / "bundle", options).path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """38 samples: nine whole steps and a ragged one. Not to be changed."""
    draw = np.random.default_rng(7)
    labels = draw.integers(0, 3, 38)
    images = draw.standard_normal((38, 3, 24, 24)) + labels[:, None, None, None] - 1
    path = tmp_path_factory.mktemp("photos") / "train.npz"
    np.savez(path, image=images.astype(np.float32), labels=labels)
    return path
