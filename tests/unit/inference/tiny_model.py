"""Model folders to test with, made here: a tiny `CompactNet` with random weights, and `Bright`, a network with the same
inputs and outputs whose answers can be told by looking at the picture."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.models.compact import CompactConfig, CompactNet, Features
from lexitome.models.efficientnet_lite import EfficientNetLite

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24), frozen_blocks=0)
SIDE = 64
FEATURES = list(Features._fields)
OUTPUTS = ["logits", "presence", "centres", "offsets"]


def concept(name: str, *families: str, **changes: object) -> dict[str, object]:
    """An entry of `trained_concepts`."""
    entry: dict[str, object] = {
        "concept": name, "words": name, "families": list(families), "window": None, "threshold": 0.5, "side": SIDE,
        "stacked": False, "views": False, "countable": False, "mirrored": False,
    }  # fmt: skip
    return entry | changes


CONCEPTS = [
    concept("polyp", "endoscopy"),
    concept("skin lesion", "dermoscopy", threshold=0.9, mirrored=True),
    concept("retinal vessel", "fundus", side=96),
    concept("nuclei", "fluorescence", "ct", countable=True),
    concept("liver", "ct", "mr", window=[-125.0, 275.0], stacked=True),
    concept("spleen", "ct", "mr", window=[-125.0, 275.0], views=True),
    concept("left kidney", "ct", "mr", window=[-125.0, 275.0]),
    concept("breast lesion", "ultrasound"),
    concept("lungs", "ct", window=[-1000.0, 400.0]),
    concept("qqzx streak", "photo"),  # a user's own concept, which no vocabulary knows
]


class Bright(nn.Module):
    """The target is what is bright in the second channel (green; in a stack the slice itself), or what a mask prompt
    covers. Presence is in the third channel (128 for as likely as not), centres are where the first is full, and the
    way to them, along x, is in the third: 128 + 4 for each pixel at half resolution."""

    def encoder(self, pictures: Tensor) -> Features:
        half = F.avg_pool2d(pictures, 2)
        return Features(F.avg_pool2d(pictures, 16), F.avg_pool2d(pictures, 8), F.avg_pool2d(pictures, 4), half)

    def decoder(self, features: Features, text: Tensor, spatial: Tensor) -> tuple[Tensor, ...]:
        half = features.skip2.expand(text.shape[0], -1, -1, -1)
        brightness = F.interpolate(half[:, 1:2], scale_factor=2.0, mode="nearest")[:, 0]
        covered = F.interpolate(spatial[:, 3:4], scale_factor=4.0, mode="nearest")[:, 0]
        unused = 0 * (features.tokens.sum() + features.skip8.sum() + features.skip4.sum() + text.sum())
        logits = (brightness - 128) / 10 + 20 * covered + unused  # or the graph would lack these inputs
        presence = (half[:, 2].amax((1, 2)) - 128) / 20
        centres = (half[:, 0] - 230) / 2
        along = (half[:, 2] - 128) / 4 / 16
        return logits, presence, centres, torch.stack([0 * along, along], 1)


class _Encoder(nn.Module):
    def __init__(self, model: CompactNet | Bright) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encoder(pictures))


class _Decoder(nn.Module):
    def __init__(self, model: CompactNet | Bright) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.decoder(Features(*inputs[:4]), *inputs[4:])[:4])


def tiny_net() -> CompactNet:
    torch.manual_seed(0)
    return CompactNet(TINY, EfficientNetLite(0)).eval()


def write_model(
    folder: Path, model: CompactNet | Bright, *, concepts: list[dict[str, object]] | None = None, **changes: object
) -> Path:
    """A complete model folder; `changes` replace values of its card."""
    folder.mkdir(parents=True)
    pictures, text = torch.rand(1, 3, SIDE, SIDE) * 255, torch.randn(2, TINY.text_dim)
    with torch.no_grad():
        features = model.encoder(pictures)
    maps: dict[str, dict[int, str]] = {name: {2: f"{name}_rows", 3: f"{name}_columns"} for name in FEATURES}
    axes: dict[str, dict[int, str]] = {
        "pictures": {2: "rows", 3: "columns"}, **maps, "text": {0: "queries"},
        "spatial": {0: "queries", 2: "map_rows", 3: "map_columns"}, **{name: {0: "queries"} for name in OUTPUTS},
    }  # fmt: skip
    inputs = (*features, text, torch.zeros(2, 4, SIDE // 4, SIDE // 4))
    parts = {"encoder": (_Encoder(model), (pictures,), ["pictures"], FEATURES),
             "decoder": (_Decoder(model), inputs, [*FEATURES, "text", "spatial"], OUTPUTS)}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (module, arguments, takes, gives) in parts.items():
            torch.onnx.export(
                module, arguments, folder / f"{name}.onnx", input_names=takes, output_names=gives, opset_version=17,
                dynamic_axes={k: v for k, v in axes.items() if k in takes + gives},
                dynamo=False, do_constant_folding=False,
            )  # fmt: skip
    digest = hashlib.sha256(b"".join((folder / f"{name}.onnx").read_bytes() for name in parts))
    card: dict[str, object] = {
        "name": "tiny", "side": SIDE, "sha256": digest.hexdigest(), "size_mb": 0.1, "weights_licence": "CC0",
        "research_only": False, "default_threshold": 0.5, "metrics": {"dice": 0.5}, "provenance": {}, "sets": [],
        "trained_concepts": CONCEPTS if concepts is None else concepts,
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card | changes))
    return folder
