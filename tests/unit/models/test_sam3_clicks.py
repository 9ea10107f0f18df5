"""One object from clicks, against transformers' `Sam3TrackerModel`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Sam3TrackerConfig, Sam3TrackerModel

from lexitome.models.sam3.clicks import Clicks, click
from lexitome.models.sam3.presets import config_of
from lexitome.models.sam3.tracker import Sam3Tracker, tracker_config

SIDE, WIDTH = 64, 128
CONFIG = tracker_config(config_of("tiny").vision_config, width=WIDTH)


@pytest.fixture(scope="module")
def pair() -> tuple[Sam3TrackerModel, Sam3Tracker]:
    """The same random weights in both."""
    torch.manual_seed(0)
    ours = Sam3Tracker(CONFIG)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    kinds: dict[str, Any] = {
        name: getattr(CONFIG, name).to_dict() for name in ("prompt_encoder_config", "mask_decoder_config")
    }
    theirs = Sam3TrackerModel(Sam3TrackerConfig(vision_config=CONFIG.vision_config, **kinds)).eval()
    own = theirs.state_dict()
    given = ours.tracker_model.state_dict()
    given |= {f"vision_encoder.neck.{name}": value for name, value in ours.tracker_neck.state_dict().items()}
    missing, _ = theirs.load_state_dict({name: value for name, value in given.items() if name in own}, strict=False)
    assert all(name.startswith("vision_encoder.backbone.") for name in missing)
    return theirs, ours


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


CASES = {
    "one point": Clicks(torch.tensor([[0.3, 0.6]]), torch.tensor([True])),
    "points": Clicks(torch.tensor([[0.3, 0.6], [0.8, 0.1]]), torch.tensor([True, False])),
    "box": Clicks(torch.zeros(0, 2), torch.zeros(0).bool(), torch.tensor([0.2, 0.3, 0.7, 0.9])),
    "box and point": Clicks(torch.tensor([[0.3, 0.6]]), torch.tensor([True]), torch.tensor([0.2, 0.3, 0.7, 0.9])),
    "mask": Clicks(torch.zeros(0, 2), torch.zeros(0).bool(), None, torch.eye(32).roll(3, 0)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(pair: tuple[Sam3TrackerModel, Sam3Tracker], picture: Tensor, name: str) -> None:
    theirs, ours = pair
    given = CASES[name]
    points = (given.points * SIDE - 0.5)[None, None] if len(given.points) else None
    labels = given.inside.int()[None, None] if len(given.points) else None
    box = None if given.box is None else (given.box * SIDE - 0.5)[None, None]
    mask = None if given.mask is None else ((2 * given.mask - 1) * 10)[None, None]
    alone = len(given.points) == 1 and box is None
    # transformers adds the code for "no memory" to the smallest level, which nothing reads; the official code, to this.
    maps = theirs.get_image_embeddings(picture)
    maps[-1] = maps[-1] + theirs.no_memory_embedding.view(1, -1, 1, 1)
    said = theirs(
        image_embeddings=maps, input_points=points, input_labels=labels, input_boxes=box, input_masks=mask,
        multimask_output=alone,
    )  # fmt: skip
    best = int(said.iou_scores[0, 0].argmax())
    seen = theirs.vision_encoder.backbone(picture).last_hidden_state
    logits, iou = click(ours, ours.look(seen.unflatten(1, (-1, SIDE // 8)).permute(0, 3, 1, 2)), given)
    torch.testing.assert_close(logits, said.pred_masks[0, 0, best], atol=1e-4, rtol=1e-4)
    assert iou == pytest.approx(float(said.iou_scores[0, 0, best]), abs=1e-5)
