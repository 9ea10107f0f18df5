"""SAM3's tracker: a mask on one slice carried to the next, with a memory that does not grow.

The layers are those of transformers' `Sam3TrackerVideoModel`, which has the design of SAM 2 (Ravi et al. 2024, section
4): the features of a slice attend to maps of earlier slices and to pointers, a short vector for each slice on what the
object is; a mask decoder then says where it is here, and whether it is here at all. transformers keeps everything it
has ever seen of a video in an inference session. Here an object that is followed in one direction has a `Bank` of fixed
size: what a session would use of a way in one direction, and the same masks.

Shapes: S the side of a picture, h = w = S / 14 the coarsest grid, C the width (256), M the width of a memory (64).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Sam3TrackerVideoConfig, Sam3TrackerVideoModel
from transformers.models.sam3.configuration_sam3 import Sam3VisionConfig
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import get_1d_sine_pe


class Sight(NamedTuple):
    """What the tracker sees of one slice, whatever the object: all that has to be kept to come back to the slice."""

    fine: Tensor  # (1, C / 8, 4h, 4w)
    middle: Tensor  # (1, C / 4, 2h, 2w)
    coarse: Tensor  # (1, C, h, w)


class Memory(NamedTuple):
    """What is remembered of an object on one slice. ``map`` is None where only the pointer is still needed."""

    map: Tensor | None  # (h w, 1, M) bfloat16, as in transformers and the official code
    pointer: Tensor  # (1, C)


class Tracked(NamedTuple):
    """Where an object is on a slice. Without one all ``logits`` are -1024."""

    logits: Tensor  # (4h, 4w) float32
    presence: float  # logit that it is there at all
    memory: Memory


class Bank:
    """What is remembered of one object on its way through the slices in one direction.

    At most 4 marked slices, on which it was said where the object is, the maps of the 6 slices passed last and the
    pointers of the 15 passed last (numbers of the official configuration). A marked slice that gives way to newer ones
    becomes one that was passed; transformers would hold on to its pointer for ever.

    Args:
        slices: of the whole sequence; distances in it are scaled by the number of pointers it can fill.
    """

    def __init__(self, config: Sam3TrackerVideoConfig, slices: int) -> None:
        self._most_marked: int = config.max_cond_frame_num
        self._maps: int = config.num_maskmem - 1
        self._pointers: int = min(slices, config.max_object_pointers_in_encoder) - 1
        self._marked: dict[int, Memory] = {}
        self._passed: dict[int, Memory] = {}

    def mark(self, index: int, memory: Memory) -> None:
        """Remember a slice on which the mask was given."""
        self._marked[index] = memory
        if len(self._marked) > self._most_marked:
            oldest = next(iter(self._marked))
            self._passed[oldest] = self._marked.pop(oldest)
        self._forget(index)

    def add(self, index: int, memory: Memory) -> None:
        """Remember a slice on which the tracker found the mask."""
        self._passed[index] = memory
        self._forget(index)

    def maps(self, index: int) -> list[tuple[int, Tensor]]:
        """(slices from there to `index`, map) of what is remembered; a marked slice counts as 0 away."""
        near = [(0, memory.map) for memory in self._marked.values()]
        near += [(abs(index - there), memory.map) for there, memory in self._passed.items()]
        return [(away, each) for away, each in near if each is not None]

    def pointers(self, index: int) -> list[tuple[float, Tensor]]:
        """(distance from there to `index`, 1 for the farthest slice passed, pointer)."""
        known = {**self._marked, **self._passed}
        return [(abs(index - there) / max(self._pointers, 1), memory.pointer) for there, memory in known.items()]

    def _forget(self, newest: int) -> None:
        for there, memory in list(self._passed.items()):
            away = abs(newest - there) + 1  # as the next slice will see it
            if away > self._pointers:
                del self._passed[there]
            elif away > self._maps:
                self._passed[there] = memory._replace(map=None)


class Sam3Tracker(nn.Module):
    """The tracker and its own neck on the detector's vision encoder.

    Parameters are named as in transformers' `Sam3VideoModel` (`tracker_model.`, `tracker_neck.`), so that its
    checkpoints fit as they are. For inference; nothing here is trained.
    """

    def __init__(self, config: Sam3TrackerVideoConfig) -> None:
        super().__init__()
        self.tracker_model = Sam3TrackerVideoModel(config, remove_vision_encoder=True)
        vision: Any = config.vision_config
        self.tracker_neck = Sam3VisionNeck(vision)
        self.eval()

    @property
    def side(self) -> int:
        """S, pixels."""
        return int(self.tracker_model.image_size)

    def bank(self, slices: int) -> Bank:
        """An empty memory for a sequence of so many slices."""
        return Bank(self.tracker_model.config, slices)

    def set_side(self, side: int) -> None:
        """See pictures of another size, as `presets.set_side` does for the detector: no weights change."""
        model: Any = self.tracker_model
        patch = model.config.vision_config.backbone_config.patch_size
        cells = side // patch
        model.config.image_size = side  # of the encoder and the prompts, too
        model.image_size = side
        model.backbone_feature_sizes = [[n * cells, n * cells] for n in (4, 2, 1)]
        prompts, attention = model.prompt_encoder, model.memory_attention
        prompts.input_image_size, prompts.image_embedding_size = side, (cells, cells)
        prompts.mask_input_size = (4 * cells, 4 * cells)
        attention.position_ids = attention.precompute_positions(model.config).to(attention.position_ids.device)

    @torch.inference_mode()
    def look(self, trunk: Tensor) -> Sight:
        """From `network.Features.trunk` (1, D, h, w). The neck's smallest level, which nothing reads, is left out."""
        trunk = trunk.to(self.tracker_model.no_memory_embedding.dtype)
        fine, middle, coarse = (layer(trunk) for layer in self.tracker_neck.fpn_layers[:-1])
        decoder = self.tracker_model.mask_decoder
        return Sight(decoder.conv_s0(fine), decoder.conv_s1(middle), coarse)

    @torch.inference_mode()
    def start(self, sight: Sight, mask: Tensor) -> Memory:
        """The memory of a slice on which the mask is known.

        Args:
            mask: (H, W) of any size that covers the picture, from 0 (outside) to 1 (inside).
        """
        model: Any = self.tracker_model
        full = mask[None, None].to(torch.float32)
        if full.shape[-2:] != (self.side, self.side):
            full = F.interpolate(full, (self.side, self.side), mode="bilinear", align_corners=False)
        full = (full >= 0.5).to(sight.coarse.dtype)
        said = model._use_mask_as_output(sight.coarse, [sight.fine, sight.middle], full)
        return self._remember(sight, said, given=True)

    @torch.inference_mode()
    def step(self, sight: Sight, bank: Bank, index: int) -> Tracked:
        """Find the object on slice `index`, next to the last one that went into `bank`; the bank is left as it is.

        Raises:
            ValueError: the bank is empty.
        """
        model: Any = self.tracker_model
        informed = self._recall(sight, bank, index)
        said = model._single_frame_forward(
            image_embeddings=[sight.fine, sight.middle, informed], multimask_output=model._use_multimask(False, None)
        )
        memory = self._remember(sight, said, given=False)
        return Tracked(said.pred_masks[0, 0].float(), float(said.object_score_logits), memory)

    def _recall(self, sight: Sight, bank: Bank, index: int) -> Tensor:
        """Features of a slice (1, C, h, w) that have attended to what is remembered of the object."""
        model = self.tracker_model
        maps = bank.maps(index)
        if not maps:
            raise ValueError("nothing is remembered of this object: mark a slice first")
        coarse, device = sight.coarse, sight.coarse.device
        place = self.tracker_neck.position_encoding(coarse.shape, device, torch.float32).to(coarse.dtype)
        spot = model.memory_encoder.position_encoding((1, model.mem_dim, *coarse.shape[-2:]), device, torch.float32)
        times = model.memory_temporal_positional_encoding  # the last one is that of marked slices: away - 1 = -1
        memories = [each.to(coarse.dtype) for _, each in maps]
        places = [_sequence(spot.to(coarse.dtype)) + times[away - 1] for away, _ in maps]
        pointers, pointer_places = self._pointers(bank.pointers(index))
        informed = model.memory_attention(
            _sequence(coarse),
            torch.cat([*memories, pointers]),
            _sequence(place),
            torch.cat([*places, pointer_places]),
            len(pointers),
        )
        found: Tensor = informed.reshape(1, -1, coarse.shape[1]).transpose(1, 2).view_as(coarse)
        return found

    def _pointers(self, known: list[tuple[float, Tensor]]) -> tuple[Tensor, Tensor]:
        """Pointers and their distances as tokens: both (C / M each, 1, M)."""
        model = self.tracker_model
        pointers = torch.cat([pointer for _, pointer in known])
        if model.config.enable_temporal_pos_encoding_for_object_pointers:
            away = torch.tensor([away for away, _ in known], dtype=torch.float32, device=pointers.device)
            coded = get_1d_sine_pe(away, dim=model.hidden_dim).to(pointers.dtype)
            place = model.temporal_positional_encoding_projection_layer(coded)
        else:
            place = pointers.new_zeros(len(pointers), model.mem_dim)
        parts = model.hidden_dim // model.mem_dim
        return pointers.reshape(-1, 1, model.mem_dim), place.repeat_interleave(parts, dim=0)[:, None]

    def _remember(self, sight: Sight, said: Any, *, given: bool) -> Memory:
        """Encode a mask (transformers' output of a frame) together with what the slice shows there."""
        seen, _ = self.tracker_model._encode_new_memory(
            _sequence(sight.coarse), said.high_res_masks, said.object_score_logits, is_mask_from_pts=given
        )
        return Memory(seen, said.object_pointer.reshape(1, -1))


def tracker_config(vision: Sam3VisionConfig, *, width: int | None = None) -> Sam3TrackerVideoConfig:
    """The released tracker's configuration, on a vision encoder of any side and depth.

    Args:
        width: C, a multiple of the memories' 64; by default the least that is not below the detector's.
    """
    seen: Any = deepcopy(vision)  # the configuration sets sides in what it is given
    seen.fpn_hidden_size = width = width or -(-seen.fpn_hidden_size // 64) * 64
    made: Callable[..., Sam3TrackerVideoConfig] = Sam3TrackerVideoConfig
    return made(
        vision_config=seen,
        prompt_encoder_config={"hidden_size": width, "patch_size": seen.backbone_config.patch_size},
        mask_decoder_config={"hidden_size": width},
        memory_attention_hidden_size=width,
        memory_encoder_hidden_size=width,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        image_size=seen.image_size,
    )


def _sequence(level: Tensor) -> Tensor:
    """(1, C, h, w) to (h w, 1, C)."""
    return level.flatten(2).permute(2, 0, 1)
