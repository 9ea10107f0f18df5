"""DINOv3's vision transformer for pictures of any size: its tokens, its maps between blocks, and freezing. Needs torch.

The network is transformers' `DINOv3ViTModel`; its blocks are run here, one by one, since maps between blocks are then
the same in all of its versions (what `hidden_states[-1]` holds is not), and blocks behind the last one asked for cost
nothing. Two things differ from Meta's code in training, and only there: positions are augmented once per call instead
of once per block, and drop-path (`regularise`) is drawn per picture instead of leaving out part of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth
from transformers import DINOv3ViTConfig, DINOv3ViTModel


class Features(NamedTuple):
    """After the final norm.

    Args:
        cls: (N, D).
        registers: (N, R, D).
        patches: (N, h, w, D).
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor


class Dinov3(nn.Module):
    """
    Pictures are (N, 3, H, W) of any H and W, normalised as the weights ask (`data.normalisation`). They are
    continued to a multiple of the patch by their last row and column, so that maps have h = ceil(H / patch) and
    w = ceil(W / patch) cells, the first of which begins at the corner of the picture.
    """

    def __init__(self, model: DINOv3ViTModel) -> None:
        super().__init__()
        self.model = model
        self.frozen = False

    @property
    def config(self) -> DINOv3ViTConfig:
        return self.model.config

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.config.patch_size)  # type: ignore[arg-type]

    @property
    def dim(self) -> int:
        return self.config.hidden_size

    @property
    def depth(self) -> int:
        return self.config.num_hidden_layers

    @property
    def prefix(self) -> int:
        """Tokens before those of patches: the class token and the registers."""
        return 1 + self.config.num_register_tokens

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.model.layer

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the maps of a picture of that size in pixels."""
        return -(-height // self.patch), -(-width // self.patch)

    def forward(self, pictures: Tensor, masks: Tensor | None = None) -> Features:
        """`features`, under the name that wrappers (DDP, FSDP, compile) know."""
        return self.features(pictures, masks)

    def features(self, pictures: Tensor, masks: Tensor | None = None) -> Features:
        """
        Args:
            masks: (N, h * w) bool; where true, the patch is replaced by the mask token.
        """
        last = self.depth - 1
        tokens = self.model.norm(self._run(pictures, (last,), masks)[last])
        cls, registers, patches = tokens.split((1, self.prefix - 1, tokens.shape[1] - self.prefix), dim=1)
        return Features(cls[:, 0], registers, patches.unflatten(1, self.grid(*pictures.shape[-2:])))

    def taps(self, pictures: Tensor, blocks: Sequence[int], norm: bool = True) -> list[Tensor]:
        """Maps (N, h, w, D) behind those blocks, in the order asked for.

        Args:
            blocks: counted from 0; negative ones from the end, as in a list.
            norm: each through the final norm, as MedDINOv3 and SegDINO take them.

        Raises:
            ValueError: there is no such block.
        """
        wanted = [block + self.depth if block < 0 else block for block in blocks]
        if not wanted or not all(0 <= block < self.depth for block in wanted):
            raise ValueError(f"blocks are counted from 0 to {self.depth - 1}, not {list(blocks)}")
        found = self._run(pictures, wanted)
        maps = [found[block][:, self.prefix :].unflatten(1, self.grid(*pictures.shape[-2:])) for block in wanted]
        return [self.model.norm(each) for each in maps] if norm else maps

    def _run(self, pictures: Tensor, wanted: Sequence[int], masks: Tensor | None = None) -> dict[int, Tensor]:
        """Tokens (N, prefix + h * w, D) behind each of the blocks, before the final norm."""
        if self.frozen and self.model.training:  # somebody called train() on a part, which does not pass through ours
            self.model.eval()
        model = self.model
        pictures = self._padded(pictures).to(model.embeddings.patch_embeddings.weight.dtype)
        tokens = model.embeddings(pictures, bool_masked_pos=masks)
        positions = model.rope_embeddings(pictures)
        found = {}
        for index, block in enumerate(self.blocks[: max(wanted) + 1]):
            tokens = block(tokens, position_embeddings=positions)
            if index in wanted:
                found[index] = tokens
        return found

    def _padded(self, pictures: Tensor) -> Tensor:
        below, right = (-side % self.patch for side in pictures.shape[-2:])
        return F.pad(pictures, (0, right, 0, below), mode="replicate") if below or right else pictures

    def augment(self, *, shift: float | None = None, jitter: float | None = None, rescale: float | None = None) -> Self:
        """Move the positions of patches at random while training: None leaves one out, no argument switches all off.

        Args:
            shift: of both axes, uniform within +-shift; the picture spans -1 to 1.
            jitter: of each axis a factor, log-uniform between 1 / jitter and jitter.
            rescale: the same of both axes together. DINOv3 was trained with 2.
        """
        config = self.model.rope_embeddings.config
        config.pos_embed_shift, config.pos_embed_jitter, config.pos_embed_rescale = shift, jitter, rescale
        return self

    def regularise(self, drop_path: float) -> Self:
        """Leave out each half of a block with that probability, for each picture alone, while training."""
        for block in self.blocks:
            block.drop_path = StochasticDepth(drop_path, "row") if drop_path > 0 else nn.Identity()
        return self

    def freeze(self) -> Self:
        """No gradients, and evaluation mode for ever: neither positions nor paths are drawn at random, whatever the
        module around it calls."""
        self.requires_grad_(False)
        self.frozen = True
        return self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)
