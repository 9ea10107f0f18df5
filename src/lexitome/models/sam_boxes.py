"""SAM (Kirillov et al., ICCV 2023) asked by boxes, from a folder of Hugging Face weights. Needs torch and transformers.

Tensors in, tensors out: a picture becomes an embedding once, each box is decoded from it. As in the zero-shot study of
Mazurowski et al. (Medical Image Analysis 2023) SAM sees 2D pictures; a box asks for one mask, of the three that SAM
offers for what is ambiguous the single one it was trained to give for unambiguous prompts (`multimask_output=False`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lexitome.errors import InputError

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet's red, green and blue in 0..255, as in the official code."""
DOWNLOAD = "Get facebook/sam-vit-base (config.json, model.safetensors) from Hugging Face and name its folder."


@dataclass(frozen=True, eq=False)
class SamBoxes:
    """A loaded SAM. Holds no image; threads may share it."""

    model: Any
    sha256: str

    @property
    def side(self) -> int:
        return int(self.model.config.vision_config.image_size)

    @torch.inference_mode()
    def embed(self, picture: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) RGB to its embedding: longer side scaled to `side`, the rest padded with 0 after normalisation."""
        height, width = _scaled(picture.shape[0], picture.shape[1], self.side)
        shown = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
        shown = F.interpolate(shown, (height, width), mode="bilinear", antialias=True)
        shown = (shown - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(DEVIATION).view(1, 3, 1, 1)
        padded = F.pad(shown, (0, self.side - width, 0, self.side - height))
        found: Tensor = self.model.get_image_embeddings(padded.to(self.model.device))
        return found

    @torch.inference_mode()
    def decode(
        self, embedding: Tensor, size: tuple[int, int], boxes: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """
        Args:
            size: (H, W) of the picture.
            boxes: (N, 4) x0, y0, x1, y1 in pixels of the picture, the outer edges (last pixel + 1).

        Returns:
            (N, H, W) probabilities and (N,) the IoU that SAM expects of them.
        """
        height, width = _scaled(*size, self.side)
        factors = np.array([width / size[1], height / size[0]] * 2)
        given = torch.from_numpy((boxes * factors).astype(np.float32))[None].to(embedding.device)
        out = self.model(image_embeddings=embedding, input_boxes=given, multimask_output=False)
        logits = F.interpolate(out.pred_masks[0].float(), (self.side, self.side), mode="bilinear")
        logits = F.interpolate(logits[..., :height, :width], size, mode="bilinear")
        return logits[:, 0].sigmoid().cpu().numpy(), out.iou_scores[0, :, 0].float().cpu().numpy()


def _scaled(height: int, width: int, side: int) -> tuple[int, int]:
    """The longer side becomes `side`, the other is rounded (official `ResizeLongestSide`)."""
    factor = side / max(height, width)
    return int(height * factor + 0.5), int(width * factor + 0.5)


def load_sam(folder: str | Path) -> SamBoxes:
    """SAM from a folder with `config.json` and `model.safetensors`; nothing is downloaded, nothing is unpickled.

    Raises:
        InputError: transformers is not installed, or the folder holds something else.
    """
    root = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (root / name).is_file():
            raise InputError(root, f"holds no {name}", DOWNLOAD)
    kind = _kind(root / "config.json")
    if kind != "sam":
        raise InputError(root, f"holds a model of type {kind!r}, not SAM", DOWNLOAD)
    try:
        import transformers
    except ImportError as error:
        raise InputError("SAM", "needs transformers", "Type: pip install transformers") from error
    try:
        load: Any = transformers.SamModel.from_pretrained  # its annotation does not know of `output_loading_info`
        model, said = load(root, local_files_only=True, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # transformers and safetensors raise several kinds
        raise InputError(root, f"cannot be loaded ({str(error).splitlines()[0]})", DOWNLOAD) from error
    if said["missing_keys"]:
        cause = f"lacks {len(said['missing_keys'])} weights, such as {min(said['missing_keys'])}"
        raise InputError(root, cause, DOWNLOAD)
    return SamBoxes(model.eval(), _hash(root / "model.safetensors"))


def _kind(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(path, f"is not the configuration of a model ({error})", DOWNLOAD) from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
