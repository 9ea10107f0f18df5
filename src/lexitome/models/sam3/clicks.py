"""One object from points, a box or a rough mask: the mask decoder of SAM3's tracker, which is that of SAM 2 (Ravi et
al. 2024, section 4). Needs torch and the tracker's weights.

Where a user clicks there is something: the decoder's own doubt whether the object is there at all is not asked.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lexitome.models.sam3.tracker import Sam3Tracker, Sight

CERTAIN = 10.0
"""Logit of a pixel inside a given mask, as in SAM 2; outside it is minus this."""


class Clicks(NamedTuple):
    """In shares of the picture, 0 to 1 across and down."""

    points: Tensor  # (P, 2)
    inside: Tensor  # (P,) bool
    box: Tensor | None = None  # (4,) x0, y0, x1, y1
    mask: Tensor | None = None  # (H, W) of any size, 0..1


@torch.inference_mode()
def click(tracker: Sam3Tracker, sight: Sight, clicks: Clicks) -> tuple[Tensor, float]:
    """Mask logits (4h, 4w) float32 and the IoU that the decoder expects of them.

    A single point may mean a part or the whole: of the three masks that the decoder offers, the one it is surest of.
    """
    model = tracker.tracker_model
    dtype = model.no_memory_embedding.dtype
    points = (clicks.points * tracker.side - 0.5).to(dtype)[None, None]  # the encoder adds the half again
    labels = clicks.inside.to(torch.int32)[None, None]
    box = None if clicks.box is None else (clicks.box * tracker.side - 0.5).to(dtype)[None, None]
    if box is None and not len(clicks.points):
        points, labels = points.new_zeros(1, 1, 1, 2), labels.new_full((1, 1, 1), -1)  # "no point", as in SAM 2
    mask = None
    if clicks.mask is not None:
        full = clicks.mask.float()[None, None]
        small = F.interpolate(full, model.prompt_encoder.mask_input_size, mode="bilinear", antialias=True)
        mask = ((2 * small - 1) * CERTAIN).to(dtype)
    given = points if points.shape[2] else None
    sparse, dense = model.prompt_encoder(given, None if given is None else labels, box, mask)
    masks, ious, _, _ = model.mask_decoder(
        image_embeddings=sight.coarse + model.no_memory_embedding.view(1, -1, 1, 1),
        image_positional_embeddings=model.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense,
        multimask_output=len(clicks.points) == 1 and box is None and mask is None,
        high_resolution_features=[sight.fine, sight.middle],
    )  # fmt: skip
    best = int(ious[0, 0].argmax())
    return masks[0, 0, best].float(), float(ious[0, 0, best])
