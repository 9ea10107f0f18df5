"""One annotated case read from disk: the image with its geometry, and the reference on the same grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lexitome.data.dataset import Case, Target
from lexitome.volume import Volume


def read_case(case: Case) -> tuple[Volume, NDArray[np.uint8]]:
    """(image, (Z, Y, X) uint8 codes, see `data.dataset`); an image without annotation is all 0.

    Raises:
        InputError: a file cannot be read, or image and annotation do not share a grid.
    """
    volume = case.content.volume()
    return volume, case.content.codes(volume.grid)


def read_instances(case: Case, volume: Volume, target: Target | None = None) -> NDArray[np.uint16] | None:
    """(Z, Y, X) ids of objects, 0 for none; None for every case of a dataset that does not tell objects apart.

    Args:
        volume: what `read_case` returned.
        target: only objects of this target. Without it, where objects overlap (a nucleus in its cell) the smaller one
            owns the pixel, so that none is lost.
    """
    return case.content.instances(volume.grid, target)
