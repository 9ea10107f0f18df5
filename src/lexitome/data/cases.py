"""One annotated case read from disk: the image with its geometry, and the reference on the same grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lexitome import io
from lexitome.data.folder import EXTRA_SHIFT, Case
from lexitome.errors import InputError
from lexitome.volume import Volume


def read_case(case: Case) -> tuple[Volume, NDArray[np.uint8]]:
    """(image, (Z, Y, X) uint8 combined codes, see `folder.EXTRA_SHIFT`); an image without a mask file is all 0.

    Raises:
        InputError: image and mask do not share a grid.
    """
    volume = io.read(case.image)
    codes = np.zeros(volume.grid, dtype=np.uint8)
    for path, shift in ((case.mask, 1), (case.extra_mask, EXTRA_SHIFT)):
        if path is None:
            continue
        mask = io.read(path)
        if mask.grid != volume.grid:
            raise InputError(path, f"mask grid {mask.grid} differs from the image's {volume.grid}", "Redraw the mask.")
        codes += mask.array[0].astype(np.uint8) * np.uint8(shift)
    return volume, codes
