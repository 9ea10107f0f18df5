"""A `Sam3Segmenter` to test with, whose answers can be told by looking at the picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lexitome.data.feature_cache import FeatureCache
from lexitome.inference.sam3_segmenter import Sam3Segmenter
from lexitome.inference.sam3_words import Words
from lexitome.models.sam3.network import Features, Outputs, Prompts, Sam3Net
from lexitome.models.sam3.presets import build, config_of
from lexitome.models.sam3.settings import Settings
from lexitome.models.sam3.tokens import Tokens
from lexitome.models.sam3.tracker import Sam3Tracker, tracker_config

SIDE, CELLS = 64, 32
TOKENS = Tokens.learn(["polyp", "liver", "left lung", "visual"], 560)


class Bright(Sam3Net):
    """Everything bright is what was asked for: one object in the left half, one in the right half, 3 more that are
    nothing. A longer text makes it less sure (each token takes half a logit); a negative box over an object's centre
    takes that object away. ``encoded`` counts pictures."""

    encoded = 0

    def encode(self, pictures: Tensor) -> Features:
        self.encoded += len(pictures)
        fine = F.adaptive_avg_pool2d(pictures, CELLS)
        return Features((fine, fine, F.avg_pool2d(fine, 4)), (fine[:1],), torch.zeros(len(pictures), 32, 8, 8))

    def decode(
        self, features: Features, prompts: Prompts, text: Tensor | None = None, *, twins: bool = False
    ) -> Outputs:
        bright = features.fpn[0][prompts.image].mean(1) * 10
        left = torch.arange(CELLS) < CELLS // 2
        dark = torch.full_like(bright, -10)
        halves = [torch.where(left, bright, dark), torch.where(left, dark, bright)]
        masks = torch.stack([*halves, dark, dark, dark], 1)
        shown = masks.flatten(2).amax(2)
        boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]] + [[0.5, 0.5, 0.1, 0.1]] * 3)
        logits = torch.where(shown > 0, 3.0, -6.0) - torch.tensor([0, 0.5, 0, 0, 0])
        for row in range(len(logits)):
            for box, label in zip(prompts.boxes[row], prompts.box_labels[row], strict=True):
                covered = ((boxes[:, :2] - box[:2]).abs() < box[2:] / 2).all(1)
                logits[row] -= 10 * (covered & (label == 0))
        doubt = 0.5 * prompts.token_mask.sum(1)
        presence = torch.where(shown.amax(1) > 0, 4.0, -4.0) - doubt
        layers = [logits[None], boxes.expand(1, len(logits), -1, -1), presence[None]]
        return Outputs(layers[0], layers[1], layers[2], masks, bright)


def segmenter(
    *, net: Sam3Net | None = None, tracker: bool = False, cache: FeatureCache | None = None, **changes: Any
) -> Sam3Segmenter:
    """By default `Bright`, in the settings as they are but for `changes`."""
    settings = Settings(**changes)
    if net is None:
        net = Bright(build(config_of("tiny", vocabulary=TOKENS.size), 0).model, geometry_cls=settings.geometry_cls)
    net = net.eval()
    torch.manual_seed(0)
    found = Sam3Tracker(tracker_config(net.model.config.vision_config, width=128)) if tracker else None
    words = Words(net, TOKENS, lambda: "0" * 64, cache)
    return Sam3Segmenter(net, words, settings, "bright", "memory", lambda: "0" * 64, "Apache-2.0", found)
