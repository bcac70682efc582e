"""Which units of a picture their neighbours predict: native/choose/predict.h, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pyfastv
from pyfastv import _native

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 8)
TAUS = st.sampled_from([0, 1, 2, 8, 254, 255])
# values of a unit: below, at and above what is compared at once
LENGTHS = st.sampled_from([1, 3, 255, 256, 257, 600])


def drawn(seed: int, nx: int, ny: int, n: int, noise: int) -> NDArray[np.uint8]:
    """[ny, nx, n]: few kinds of units, in stretches, a little disturbed."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 256 - noise, (3, n))
    which = rng.integers(0, 3, (ny, nx))
    for y in range(ny):
        for x in range(nx):
            if x and rng.random() < 0.5:
                which[y, x] = which[y, x - 1]
            elif y and rng.random() < 0.5:
                which[y, x] = which[y - 1, x]
    units = kinds[which] + rng.integers(0, noise + 1, (ny, nx, n))
    return units.astype(np.uint8)


def expected(units: NDArray[np.uint8], tau: int) -> NDArray[np.int64]:
    """A coder of whole units, and what its decoder shows."""
    ny, nx, _ = units.shape
    shown = units.astype(int)
    stands_for = np.arange(ny * nx).reshape(ny, nx)
    for y in range(ny):
        for x in range(nx):
            if y == 0 and x == 0:
                continue
            left, upper = (y, x - 1), (y - 1, x)
            if y == 0:
                by = left
            elif x == 0:
                by = upper
            else:
                corner = shown[y - 1, x - 1]
                vertical = np.abs(shown[left] - corner).max() <= np.abs(shown[upper] - corner).max()
                by = upper if vertical else left
            if np.abs(shown[y, x] - shown[by]).max() <= tau:
                shown[y, x], stands_for[y, x] = shown[by], stands_for[by]
    return stands_for


@given(seed=SEEDS, nx=SIDES, ny=SIDES, n=LENGTHS, noise=st.sampled_from([0, 2, 10]), tau=TAUS)
def test_units_are_predicted_as_a_coder_predicts_them(
    seed: int, nx: int, ny: int, n: int, noise: int, tau: int
) -> None:
    units = drawn(seed, nx, ny, n, noise)
    np.testing.assert_array_equal(_native.predict_units(units, tau), expected(units, tau))


@given(seed=SEEDS, nx=SIDES, ny=SIDES, n=LENGTHS, noise=st.sampled_from([0, 2, 10]), tau=TAUS)
def test_what_stands_for_a_unit_is_kept_and_within_tau(
    seed: int, nx: int, ny: int, n: int, noise: int, tau: int
) -> None:
    units = drawn(seed, nx, ny, n, noise)
    stands_for = _native.predict_units(units, tau).ravel()
    flat = units.reshape(ny * nx, n).astype(int)
    assert stands_for[0] == 0
    assert (stands_for <= np.arange(ny * nx)).all()
    np.testing.assert_array_equal(stands_for[stands_for], stands_for)
    assert np.abs(flat - flat[stands_for]).max() <= tau


def test_a_slope_is_not_predicted_by_its_first_unit() -> None:
    """Steps of tau add up, and a unit is compared with what stands for the one before."""
    slope = np.arange(0, 80, 4, dtype=np.uint8).reshape(1, 20, 1)
    assert np.unique(_native.predict_units(slope, 4)).tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_a_flat_picture_is_one_unit_and_one_without_equal_neighbours_is_all_of_them() -> None:
    flat = np.full((5, 7, 12), 255, np.uint8)
    assert not _native.predict_units(flat, 0).any()
    other = np.arange(35, dtype=np.uint8).reshape(5, 7, 1).repeat(12, axis=2)
    np.testing.assert_array_equal(_native.predict_units(other, 0).ravel(), np.arange(35))


def test_an_edge_goes_on_in_its_direction() -> None:
    """Columns of one colour are predicted from above, rows from the left."""
    stripes = np.arange(6, dtype=np.uint8)[None, :, None].repeat(4, axis=0)
    np.testing.assert_array_equal(_native.predict_units(stripes, 0), np.arange(6)[None].repeat(4, axis=0))
    turned = stripes.transpose(1, 0, 2).copy()
    rows = 4 * np.arange(6)[:, None].repeat(4, axis=1)
    np.testing.assert_array_equal(_native.predict_units(turned, 0), rows)


@pytest.mark.parametrize(
    ("shape", "tau", "wrong"),
    [
        ((2, 2, 3), -1, "tau"),
        ((2, 2, 3), 256, "tau"),
        ((0, 2, 3), 0, "units must be"),
        ((2, 2, 0), 0, "units must be"),
        ((2, 2), 0, "units must be"),
    ],
)
def test_what_is_no_picture_is_refused(shape: tuple[int, ...], tau: int, wrong: str) -> None:
    with pytest.raises(pyfastv.OptionError, match=wrong):
        _native.predict_units(np.zeros(shape, np.uint8), tau)
