"""Slices made one body: probabilities of neighbouring slices support each other, specks go.

Thresholds were chosen on the validation parts of the 3D training sets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMOOTHING = (0.25, 0.5, 0.25)
SMALLEST_PART = 0.1
"""Connected parts below this fraction of the largest are dropped (one organ, one body)."""


def smooth_slices(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """(slice, row, column) probabilities, each averaged with its neighbours along the slice axis, edges repeated."""
    if probability.shape[0] < 3:
        return probability
    from scipy import ndimage  # here, so that 2D images do not wait for it

    return np.asarray(ndimage.correlate1d(probability, SMOOTHING, axis=0, mode="nearest"), dtype=np.float32)


def drop_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the 3D connected parts (26 neighbours) of at least `SMALLEST_PART` of the largest one's size."""
    from scipy import ndimage

    parts, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= SMALLEST_PART * sizes.max())[parts])
