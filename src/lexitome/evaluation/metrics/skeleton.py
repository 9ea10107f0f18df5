"""Overlap of centre lines, for vessels, airways and nerves. Needs scikit-image."""

from __future__ import annotations

import numpy as np

from lexitome.errors import InputError
from lexitome.evaluation.metrics.overlap import Mask


def centreline_dice(prediction: Mask, reference: Mask) -> float:
    """clDice (Shit et al., CVPR 2021): harmonic mean of the shares of each skeleton that lie in the other mask.

    Args:
        prediction, reference: (Z, Y, X) or (Y, X) of one shape, neither empty. Skeletons are made on the voxel grid:
            spacing does not matter.

    Raises:
        InputError: scikit-image is not installed.
    """
    found, wanted = _skeleton(prediction), _skeleton(reference)
    precision = np.count_nonzero(found & reference) / np.count_nonzero(found)
    sensitivity = np.count_nonzero(wanted & prediction) / np.count_nonzero(wanted)
    both = precision + sensitivity
    return float(2 * precision * sensitivity / both) if both else 0.0


def _skeleton(mask: Mask) -> Mask:
    """Thinned to lines (2D: Zhang and Suen 1984, 3D: Lee et al. 1994); the mask itself if thinning leaves nothing."""
    try:
        from skimage.morphology import skeletonize
    except ImportError as error:
        raise InputError("clDice", "needs scikit-image", 'Type: pip install "lexitome[eval]"') from error
    lines = skeletonize(np.pad(mask, 1))[(slice(1, -1),) * mask.ndim].astype(bool)
    return lines if lines.any() else mask
