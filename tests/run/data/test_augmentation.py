from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.run.data.augmentation import (
    Augmentation,
    draw_flip,
    epoch_order,
    random_region,
    sample_rng,
)

SIDES = st.integers(1, 3000)
STANDARD = Augmentation()


@given(SIDES, SIDES, st.integers(0, 2**63 - 1))
def test_a_crop_lies_inside_the_image(width: int, height: int, seed: int) -> None:
    region = random_region(width, height, sample_rng(seed, 0, 0), STANDARD)
    assert region.left >= 0 and region.top >= 0
    assert region.width >= 1 and region.height >= 1
    assert region.left + region.width <= width and region.top + region.height <= height


def test_crops_keep_to_the_ranges_and_use_all_of_them() -> None:
    regions = [random_region(1000, 800, sample_rng(1, 0, i), STANDARD) for i in range(2000)]
    shares = np.array([x.width * x.height / 800_000 for x in regions])
    ratios = np.array([x.width / x.height for x in regions])
    # Sides are whole pixels: half a pixel of 240 at most.
    assert 0.079 < shares.min() < 0.1 and 0.95 < shares.max() <= 1
    assert 0.745 < ratios.min() < 0.78 and 1.3 < ratios.max() < 1.341
    # torchvision 0.29's RandomResizedCrop at this size, n = 20,000: mean share 0.452 (standard
    # deviation 0.227), 0.575 of the crops wider than high; four standard errors at n = 2000.
    assert abs(shares.mean() - 0.452) < 0.02
    assert abs(np.mean(ratios > 1) - 0.575) < 0.044


def test_an_image_no_crop_fits_gives_its_middle() -> None:
    region = random_region(1000, 10, sample_rng(0, 0, 0), STANDARD)
    assert (region.width, region.height, region.left, region.top) == (13, 10, 493, 0)
    region = random_region(10, 1000, sample_rng(0, 0, 0), STANDARD)
    assert (region.width, region.height, region.left, region.top) == (10, 13, 0, 493)


def test_half_of_the_samples_are_flipped() -> None:
    flips = [draw_flip(sample_rng(3, 1, i), STANDARD) for i in range(2000)]
    assert 0.45 < np.mean(flips) < 0.55
    assert not any(draw_flip(sample_rng(3, 1, i), Augmentation(flip=0.0)) for i in range(50))


def test_streams_depend_on_seed_epoch_and_index_alone() -> None:
    def first(seed: int, epoch: int, index: int) -> float:
        return float(sample_rng(seed, epoch, index).random())

    assert first(1, 2, 3) == first(1, 2, 3)
    triples = [(s, e, i) for s in range(5) for e in range(5) for i in range(20)]
    assert len({first(*x) for x in triples}) == len(triples)


def test_streams_are_those_of_philox_on_every_machine() -> None:
    # Pinned: a changed value means that running jobs would not resume bit-identically.
    drawn = [sample_rng(7, 2, 5).random(), sample_rng(7, 2, 6).random()]
    assert drawn == [0.2683273955376507, 0.3577286019490401]
    assert epoch_order(8, 7, 2).tolist() == [4, 1, 3, 2, 6, 5, 0, 7]


@given(st.integers(0, 200), st.integers(0, 2**64 - 1), st.integers(0, 2**32))
def test_an_order_is_a_permutation(samples: int, seed: int, epoch: int) -> None:
    order = epoch_order(samples, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(samples))
