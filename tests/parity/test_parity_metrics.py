"""Our metrics beside those of MONAI, DeepMind's surface-distance, panoptica and scikit-learn: the same where they are
right, and nearer to the closed form where they are not (docs/metrics.md says why)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from scipy import ndimage

from lexitome.evaluation.metrics import measure_mask, measure_objects
from lexitome.evaluation.metrics.calibration import binned, brier
from lexitome.evaluation.metrics.surface import average_distance, distances_between, elements, hausdorff, surface_dice

pytestmark = pytest.mark.parity

SPACINGS = [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7)]


@pytest.fixture(scope="module")
def deepmind() -> ModuleType:
    return pytest.importorskip("surface_distance", reason="surface-distance is not installed")


@pytest.fixture(scope="module")
def monai() -> ModuleType:
    return pytest.importorskip("monai.metrics", reason="MONAI is not installed")


def blobs(seed: int, shape: tuple[int, ...] = (14, 26, 30)) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random shape and a disturbed copy of it."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), 3)
    other = field + 0.4 * ndimage.gaussian_filter(rng.normal(size=shape), 2)
    return field > 0.5 * field.std(), other > 0.5 * field.std()


def boxes() -> tuple[np.ndarray, np.ndarray]:
    reference = np.zeros((14, 26, 30), bool)
    reference[3:9, 5:20, 4:18] = True
    return np.roll(reference, 4, 2), reference


def balls(shift: float, radius: float = 20.0, other: float = 20.0, side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    z, y, x = np.indices((side,) * 3)
    pair = ((x - at) ** 2 + (y - 23) ** 2 + (z - 23) ** 2 <= r**2 for at, r in ((23 + shift, radius), (23, other)))
    return next(pair), next(pair)


def tensor(mask: np.ndarray) -> object:
    import torch

    return torch.from_numpy(mask[None, None].astype(np.float32))


@pytest.mark.parametrize("seed", [0, 1])
def test_overlap_as_monai(monai: ModuleType, seed: int) -> None:
    prediction, reference = blobs(seed)
    ours = measure_mask(prediction, reference, None, tolerance=1.0)
    for name, theirs in (("dice", monai.compute_dice), ("iou", monai.compute_iou)):
        assert ours[name] == pytest.approx(theirs(tensor(prediction), tensor(reference)).item(), rel=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_boxes_as_monai_and_deepmind(monai: ModuleType, deepmind: ModuleType, spacing: tuple[float, ...]) -> None:
    """Flat faces leave nothing to argue about: all put the surfaces at the same places."""
    prediction, reference = boxes()
    found = distances_between(prediction, reference, np.diag(spacing))
    theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
    options = {"include_background": True, "spacing": list(spacing)}
    shift = 4 * spacing[2]
    for share in (0.95, 1.0):
        assert hausdorff(found, share) == pytest.approx(shift)
        assert deepmind.compute_robust_hausdorff(theirs, 100 * share) == pytest.approx(shift)
        by_monai = monai.compute_hausdorff_distance(
            tensor(prediction), tensor(reference), percentile=None if share == 1 else 95, **options
        )
        assert by_monai.item() == pytest.approx(shift)
    nsd = monai.compute_surface_dice(
        tensor(prediction), tensor(reference), [shift + 1e-5], use_subvoxels=True, **options
    ).item()
    assert nsd == deepmind.compute_surface_dice_at_tolerance(theirs, shift + 1e-5) == surface_dice(found, shift) == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_elements_are_at_the_corners_where_deepmind_has_them(deepmind: ModuleType, seed: int) -> None:
    for mask in blobs(seed):
        theirs = deepmind.compute_surface_distances(mask, mask, (1, 1, 1))
        ours = elements(mask, np.eye(3))
        assert len(ours.corners) == len(theirs["surfel_areas_gt"])
        plane = mask[7]
        lengths = deepmind.compute_surface_distances(plane, plane, (0.7, 1.5))["surfel_areas_gt"]
        np.testing.assert_allclose(np.sort(elements(plane, np.diag([0.7, 1.5])).sizes), np.sort(lengths))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_nearest_distances_as_deepmind_but_for_half_a_voxel(
    deepmind: ModuleType, spacing: tuple[float, ...], seed: int
) -> None:
    """Elements lie at most a third of a voxel along each axis from their corner."""
    prediction, reference = blobs(seed)
    theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
    ours = distances_between(prediction, reference, np.diag(spacing))
    most = 2 * np.linalg.norm(spacing) / 3 + 1e-9
    assert hausdorff(ours) == pytest.approx(deepmind.compute_robust_hausdorff(theirs, 100), abs=most)
    assert hausdorff(ours, 0.95) == pytest.approx(deepmind.compute_robust_hausdorff(theirs, 95), abs=most)


@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0])
def test_nearer_to_the_truth_than_deepmind_on_shifted_spheres(deepmind: ModuleType, shift: float) -> None:
    """The mean distance of two spheres `shift` apart is half of it, and within half of it lies half of the surface."""
    prediction, reference = balls(shift)
    theirs = deepmind.compute_surface_distances(reference, prediction, (1, 1, 1))
    ours = distances_between(prediction, reference, np.eye(3))
    error = abs(average_distance(ours) - shift / 2)
    assert error < 0.05
    assert error < 0.25 * abs(np.mean(deepmind.compute_average_surface_distance(theirs)) - shift / 2)
    tolerance = shift / 2 + 0.01  # beside the grid, where rounding decides
    gap = abs(surface_dice(ours, tolerance) - 0.5)
    assert gap < 0.05 and gap < 0.25 * abs(deepmind.compute_surface_dice_at_tolerance(theirs, tolerance) - 0.5)


def test_nearer_to_the_truth_than_deepmind_and_monai_in_and_around_a_sphere(
    deepmind: ModuleType, monai: ModuleType
) -> None:
    prediction, reference = balls(0.0, 20.0, 15.0)
    options = {"include_background": True, "symmetric": True}
    voxels = monai.compute_average_surface_distance(tensor(prediction), tensor(reference), **options).item()
    corners = np.mean(
        deepmind.compute_average_surface_distance(deepmind.compute_surface_distances(reference, prediction, (1, 1, 1)))
    )
    ours = average_distance(distances_between(prediction, reference, np.eye(3)))
    assert abs(ours - 5) < 0.13 and abs(ours - 5) < abs(voxels - 5) < abs(corners - 5)


def test_empty_masks_as_deepmind(deepmind: ModuleType) -> None:
    something = boxes()[1]
    try:
        theirs = deepmind.compute_surface_distances(something, np.zeros_like(something), (1, 1, 1))
    except AttributeError as error:
        pytest.skip(f"this surface-distance cannot measure empty masks with this NumPy: {error}")
    ours = measure_mask(np.zeros_like(something), something, None, tolerance=1.0)
    assert ours["nsd"] == deepmind.compute_surface_dice_at_tolerance(theirs, 1.0) == 0
    assert deepmind.compute_robust_hausdorff(theirs, 95) == np.inf and ours["unbounded"] == 1


def objects(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, x = np.indices((96, 96))
    maps = np.zeros((2, 96, 96), np.uint8)
    for number, (row, column) in enumerate(rng.integers(8, 88, (12, 2)), start=1):
        for part, noise in zip(maps, (0, rng.integers(0, 4)), strict=True):
            part[(y - row - noise) ** 2 + (x - column) ** 2 < 30] = number
    return maps[1], maps[0]


@pytest.mark.parametrize("seed", range(4))
def test_objects_as_panoptica_and_monai(monai: ModuleType, seed: int) -> None:
    panoptica = pytest.importorskip("panoptica", reason="panoptica is not installed")
    panoptica.disable_citation_reminder()
    prediction, reference = objects(seed)
    ours = measure_objects(prediction, reference)
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.UNMATCHED_INSTANCE,
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.5),
        instance_metrics=[panoptica.Metric.IOU], global_metrics=[],
    )  # fmt: skip
    theirs = evaluator.evaluate(prediction, reference)
    theirs = theirs["ungrouped"] if isinstance(theirs, dict) else theirs
    assert 0 < theirs.tp < ours["objects_wanted"] and ours["objects_matched"] == theirs.tp
    for name in ("pq", "sq", "rq"):
        assert ours[name] == pytest.approx(getattr(theirs, name))
    import torch

    ids = [torch.from_numpy(part.astype(np.int64)) for part in (prediction, reference)]
    quality = monai.compute_panoptic_quality(*ids, metric_name="pq", remap=True, match_iou_threshold=0.5)
    assert ours["pq"] == pytest.approx(float(quality), abs=1e-5)


def test_centre_lines_as_panoptica() -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    theirs = pytest.importorskip("panoptica.metrics.cldice", reason="panoptica is not installed")
    reference = np.zeros((60, 60), bool)
    reference[28:33, 5:55] = reference[5:55, 40:44] = True
    prediction = np.roll(reference, 2, 0)
    prediction[:, 20:27] = False
    ours = measure_mask(prediction[None], reference[None], None, tolerance=1.0, tubular=True)["cldice"]
    assert ours == pytest.approx(theirs._compute_centerline_dice_coefficient(reference, prediction))


def test_probabilities_as_scikit_learn() -> None:
    brier_score: Callable[..., float] = pytest.importorskip("sklearn.metrics").brier_score_loss
    curve: Callable[..., tuple[np.ndarray, np.ndarray]] = pytest.importorskip("sklearn.calibration").calibration_curve
    rng = np.random.default_rng(0)
    values = rng.random(5000)
    truth = rng.random(5000) < values**2
    assert brier(values, truth) == pytest.approx(brier_score(truth, values))
    bins = {name: np.array(sums) for name, sums in binned(values, truth, 15).items()}
    positive, probability = curve(truth, values, n_bins=15)
    np.testing.assert_allclose(bins["positive"] / bins["count"], positive)
    np.testing.assert_allclose(bins["probability"] / bins["count"], probability)


def test_boundary_iou_as_its_paper_for_bands_one_pixel_thin() -> None:
    """Cheng et al. erode with a square of 3 x 3 pixels, once per pixel of width; beyond one, our bands are round."""
    square = np.ones((3, 3), bool)
    for seed in range(5):
        masks = blobs(seed, (40, 44))
        bands = [mask & ~ndimage.binary_erosion(mask, square) for mask in masks]
        wanted = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
        ours = measure_mask(masks[0][None], masks[1][None], None, tolerance=1.0)["boundary_iou"]
        assert ours == pytest.approx(wanted)
