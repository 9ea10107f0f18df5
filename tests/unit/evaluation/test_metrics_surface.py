"""Surface distances: closed forms (boxes, spheres, plates), every kind of affine, and what must not change them."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lexitome.evaluation.metrics.geometry import metric_matrix, voxel_size
from lexitome.evaluation.metrics.surface import (
    Distances,
    average_distance,
    boundary_iou,
    distances_between,
    element_kinds,
    elements,
    hausdorff,
    inner_band,
    surface_dice,
)

SPACING = (5.0, 0.7, 1.5)
"""z, y, x in mm."""
masks = arrays(bool, (3, 4, 5)).filter(lambda mask: bool(mask.any()))


def box(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = True
    return mask


def ball(centre: tuple[float, ...], radius: float, side: int = 48, spacing: float = 1.0) -> np.ndarray:
    grid = np.indices((side,) * len(centre)) * spacing
    return sum((x - c) ** 2 for x, c in zip(grid, centre, strict=True)) <= radius**2


def affine_of(zyx: tuple[float, float, float]) -> np.ndarray:
    return np.diag([*zyx[::-1], 1.0])


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


def all_of(a: np.ndarray, b: np.ndarray, matrix: np.ndarray, tolerance: float = 1.0) -> np.ndarray:
    found = distances_between(a, b, matrix)
    return np.array([
        surface_dice(found, tolerance), hausdorff(found, 0.95), hausdorff(found), average_distance(found),
        boundary_iou(a, b, matrix, tolerance),
    ])  # fmt: skip


@pytest.mark.parametrize(("axis", "steps"), [(0, 1), (1, 4), (2, 2), (2, -3)])
def test_shifted_box_in_mm(axis: int, steps: int) -> None:
    """The two faces across the shift are off by it, the four along it lie in each other's plane."""
    reference = box((20, 30, 30), (6, 8, 8), (14, 22, 22))
    matrix = metric_matrix(affine_of(SPACING), 3)
    shift = abs(steps) * SPACING[axis]
    found = distances_between(np.roll(reference, steps, axis), reference, matrix)
    assert hausdorff(found) == pytest.approx(shift) == hausdorff(found, 0.95)
    assert surface_dice(found, shift) == 1
    assert surface_dice(found, 0.99 * shift) < 1


def test_grown_box_has_its_corners_farthest() -> None:
    reference, prediction = box((30,) * 3, (10,) * 3, (20,) * 3), box((30,) * 3, (7,) * 3, (23,) * 3)
    matrix = np.diag(SPACING)
    found = distances_between(prediction, reference, matrix)
    # Elements at corners lie a third of a voxel inwards, of both boxes alike.
    assert hausdorff(found) == pytest.approx(3 * np.linalg.norm(SPACING))


@pytest.mark.parametrize("inner", [8.0, 12.3, 15.0])
def test_concentric_spheres(inner: float) -> None:
    outer = 20.0
    found = distances_between(ball((23.4, 23.1, 23.7), inner), ball((23.4, 23.1, 23.7), outer), np.eye(3))
    assert average_distance(found) == pytest.approx(outer - inner, abs=0.15)
    assert hausdorff(found) == pytest.approx(outer - inner, abs=0.9)
    assert hausdorff(found, 0.95) == pytest.approx(outer - inner, abs=0.4)


@pytest.mark.parametrize("shift", [1.0, 2.0, 3.5])
def test_shifted_sphere(shift: float) -> None:
    """A point at angle t is about |shift cos t| away: on average half the shift; cos t is uniform, so that the share
    within a tolerance is tolerance / shift and the 95th percentile 0.95 shift."""
    found = distances_between(ball((23, 23, 23 + shift), 20.0), ball((23.0, 23.0, 23.0), 20.0), np.eye(3))
    assert average_distance(found) == pytest.approx(shift / 2, abs=0.06)
    assert hausdorff(found) == pytest.approx(shift, abs=0.6)  # the poles are a voxel each
    assert hausdorff(found, 0.95) == pytest.approx(0.95 * shift, abs=0.2)
    tolerance = 0.7 * shift
    assert surface_dice(found, tolerance) == pytest.approx(0.7, abs=0.12)


def test_sphere_in_coarse_slices_is_as_far_as_in_fine_ones() -> None:
    """Slices 3 voxels thick: the same two spheres, 3 mm apart."""
    values = []
    for thickness in (1, 3):
        a, b = (ball((30.0, 30.0, x), 20.0, 64)[::thickness] for x in (28.0, 31.0))
        values.append(average_distance(distances_between(a, b, np.diag([float(thickness), 1.0, 1.0]))))
    assert values == pytest.approx([1.5, 1.5], abs=0.1)


def test_discs_in_the_plane() -> None:
    found = distances_between(ball((23.2, 23.4), 19.0), ball((23.2, 23.4), 14.0), np.eye(2))
    assert average_distance(found) == pytest.approx(5.0, abs=0.15)
    assert found.reference_sizes.sum() == pytest.approx(2 * np.pi * 14, rel=0.06)


def test_sizes_of_flat_and_slanted_surfaces() -> None:
    matrix = np.diag(SPACING)
    slab = elements(box((20, 20, 20), (0, 0, 0), (10, 20, 20)), matrix)
    middle = (slab.corners[:, 0] == 10) & ((slab.corners[:, 1:] > 5) & (slab.corners[:, 1:] < 15)).all(1)
    np.testing.assert_allclose(slab.sizes[middle], SPACING[1] * SPACING[2])
    wedge = elements(np.indices((20, 20, 20)).sum(0) < 30, np.eye(3))  # the plane through three diagonals
    lines, inside = np.unique(wedge.corners[:, 1:], axis=0), np.zeros(len(wedge.corners), bool)
    whole = lines[(lines > 2).all(1) & (lines < 18).all(1) & (abs(lines.sum(1) - 20) < 6)]
    for line in whole:  # all elements above one corner of the floor, together they cover one pixel of it
        inside |= (wedge.corners[:, 1:] == line).all(1) & (wedge.corners[:, 0] > 0)
    assert len(whole) > 50 and wedge.sizes[inside].sum() == pytest.approx(np.sqrt(3) * len(whole))


def test_area_of_a_sphere_is_a_little_large() -> None:
    """Digital surfaces are rougher than what they show; the excess does not depend on the resolution."""
    areas = [elements(ball((47.2, 47.1, 47.4), r, 96), np.eye(3)).sizes.sum() / (4 * np.pi * r**2) for r in (15, 40)]
    assert areas == pytest.approx([1.06, 1.06], abs=0.01)


def test_kinds_do_not_tell_inside_from_outside_or_left_from_right() -> None:
    for dims in (2, 3):
        normals, offsets = element_kinds(dims)
        np.testing.assert_allclose(np.abs(normals), np.abs(normals[::-1]))  # all bits turned over
        np.testing.assert_allclose(offsets, offsets[::-1])
        assert not normals[0].any() and not normals[-1].any()


def test_percentile_is_by_size_and_the_worse_direction_counts() -> None:
    near_and_far = Distances(np.array([0.0, 1.0, 9.0]), np.array([0.0, 2.0]), np.array([90.0, 6.0, 4.0]), np.ones(2))
    assert hausdorff(near_and_far, 0.95) == 2  # 1 one way (96 of 100 within it), 2 the other way
    assert hausdorff(near_and_far) == 9
    assert surface_dice(near_and_far, 1.0) == pytest.approx((96 + 1) / 102)
    assert average_distance(near_and_far) == pytest.approx((6 + 36 + 2) / 102)


def test_tolerance_is_inclusive_in_spite_of_rounding() -> None:
    a, b = box((3, 3, 30), (0, 0, 5), (3, 3, 15)), box((3, 3, 30), (0, 0, 8), (3, 3, 18))
    assert surface_dice(distances_between(a, b, 0.7 * np.eye(3)), 2.1) == 1


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.integers(0, 2), st.integers(0, 3), st.floats(0.2, 7))
def test_symmetry_bounds_flips_padding_and_scale(
    a: np.ndarray, b: np.ndarray, axis: int, margin: int, scale: float
) -> None:
    matrix = np.diag(SPACING)
    values = all_of(a, b, matrix)
    nsd, hd95, hd, assd, band = values
    assert 0 <= nsd <= 1 and 0 <= band <= 1 and 0 <= assd <= hd + 1e-12 and hd95 <= hd
    for other in (
        all_of(b, a, matrix), all_of(np.flip(a, axis), np.flip(b, axis), matrix),
        all_of(np.pad(a, margin), np.pad(b, margin), matrix),
        all_of(a.transpose(2, 0, 1), b.transpose(2, 0, 1), np.diag([SPACING[2], SPACING[0], SPACING[1]])),
        all_of(a, b, scale * matrix, scale) / [1, scale, scale, scale, 1],
    ):  # fmt: skip
        np.testing.assert_allclose(other, values, atol=1e-9)
    np.testing.assert_array_equal(all_of(a, a, matrix), [1, 0, 0, 0, 1])


@settings(max_examples=30, deadline=None)
@given(masks, masks, st.floats(0.1, 6), st.floats(0.1, 6))
def test_more_tolerance_never_lowers_nsd(a: np.ndarray, b: np.ndarray, one: float, other: float) -> None:
    found = distances_between(a, b, np.diag(SPACING))
    shares = [surface_dice(found, tolerance) for tolerance in (0, *sorted((one, other)), hausdorff(found))]
    assert all(less <= more for less, more in pairwise(shares)) and shares[-1] == 1


@settings(max_examples=30, deadline=None)
@given(masks, masks, st.integers(0, 99))
def test_oblique_is_as_straight(a: np.ndarray, b: np.ndarray, seed: int) -> None:
    affine = affine_of(SPACING)
    oblique = affine.copy()
    oblique[:3, :3] = rotation(seed) @ affine[:3, :3]
    oblique[:3, 3] = 100.0
    matrix = metric_matrix(oblique, 3)
    np.testing.assert_allclose(matrix, np.diag(SPACING), atol=1e-9)
    np.testing.assert_allclose(all_of(a, b, matrix), all_of(a, b, np.diag(SPACING)))


@settings(max_examples=30, deadline=None)
@given(masks, masks, arrays(float, (3, 3), elements=st.floats(-2, 2)))
def test_sheared_distances_are_those_in_the_world(a: np.ndarray, b: np.ndarray, columns: np.ndarray) -> None:
    """Every element against every other, in world coordinates, without the triangular matrix."""
    assume(abs(np.linalg.det(columns)) > 0.1)
    affine = np.eye(4)
    affine[:3, :3] = columns
    matrix = metric_matrix(affine, 3)
    assert voxel_size(matrix) == pytest.approx(abs(np.linalg.det(columns)))
    codes_to_offset = element_kinds(3)[1]
    points = []
    for mask in (a, b):
        found = elements(mask, matrix)
        place = found.corners + codes_to_offset[found.codes[tuple(found.corners.T)]]
        points.append(place[:, ::-1] @ columns.T)
    pairs = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
    found = distances_between(a, b, matrix)
    np.testing.assert_allclose(found.of_prediction, np.sort(pairs.min(1)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.of_reference, np.sort(pairs.min(0)), rtol=1e-6, atol=1e-6)


def test_sheared_faces_have_their_true_area() -> None:
    affine = np.eye(4)
    affine[:3, :3] = [[1.0, 0.4, 0.2], [0.0, 2.0, -0.5], [0.1, 0.0, 3.0]]  # columns: a step in x, y, z
    x, y, z = affine[:3, :3].T
    matrix = metric_matrix(affine, 3)
    for axis, (one, other) in enumerate(((x, y), (x, z), (y, z))):
        half = np.moveaxis(box((9, 9, 9), (0, 0, 0), (4, 9, 9)), 0, axis)
        found = elements(half, matrix)
        rest = [i for i in range(3) if i != axis]
        flat = (found.corners[:, axis] == 4) & (abs(found.corners[:, rest] - 4.5) < 3).all(1)
        np.testing.assert_allclose(found.sizes[flat], np.linalg.norm(np.cross(one, other)))


def test_affines_without_an_inverse_are_refused() -> None:
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    parallel = np.eye(4)
    parallel[:3, 1] = parallel[:3, 0]
    for affine in (flat, parallel, np.full((4, 4), np.nan), np.eye(3)):
        with pytest.raises(ValueError, match="affine"):
            metric_matrix(affine, 3)
    np.testing.assert_array_equal(metric_matrix(flat, 2), np.eye(2))  # the thickness of a single slice does not matter


def test_band_of_a_square_by_hand() -> None:
    square = box((12, 12), (1, 1), (11, 11))
    for width, thick in ((0.0, 1), (1.0, 1), (1.6, 2), (2.6, 3)):
        inside = box((12, 12), (1 + thick,) * 2, (11 - thick,) * 2)
        np.testing.assert_array_equal(inner_band(square, np.eye(2), width), square & ~inside)
    # Thick slices: a band of 1 mm holds one slice at each end, and one voxel to the sides.
    block = box((8, 9, 9), (1, 1, 1), (7, 8, 8))
    band = inner_band(block, np.diag([5.0, 1.0, 1.0]), 1.0)
    np.testing.assert_array_equal(band, block & ~box((8, 9, 9), (2, 2, 2), (6, 7, 7)))


@settings(max_examples=30, deadline=None)
@given(masks, st.floats(0, 8))
def test_band_is_what_lies_near_a_corner_of_the_surface(mask: np.ndarray, width: float) -> None:
    """Voxel by voxel, corner by corner."""
    matrix = metric_matrix(np.array([[1, 0.3, 0, 0], [0, 2, 0, 0], [0, 0.5, 3, 0], [0, 0, 0, 1.0]]), 3)
    corners = elements(mask, matrix).corners - 0.5
    wanted = np.zeros_like(mask)
    for voxel in product(*map(range, mask.shape)):
        steps = corners - voxel
        near = np.linalg.norm(steps @ matrix.T, axis=1) <= width
        wanted[voxel] = mask[voxel] and bool((near | (np.abs(steps) == 0.5).all(1)).any())
    np.testing.assert_array_equal(inner_band(mask, matrix, width), wanted)
