"""Frozen encoders of pictures behind one small protocol: what a probe compares. Needs torch.

    dinov3-s ... meddinov3-b, or a folder or file of such weights     random:mini, random:s ... the same, random weights
    sam3, medical-sam3, or a folder or file: the vision encoder       random:sam3-small (-tiny, -full)
    sam: the vision encoder, 1024 pixels only
    compact, compact-open, or a folder of an exported model
    imagenet: EfficientNet-Lite0 with its ImageNet weights
    timm/NAME: weights that were downloaded; timm/NAME@FILE           random:timm/NAME

Nothing is downloaded. An encoder takes pictures whose intensities were treated as its `intensity` says, and gives a map
and, if it has one, a class token; both after the last norm.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lexitome.errors import InputError
from lexitome.models.attention import LongAttentionByHead
from lexitome.models.catalog import find_model
from lexitome.models.foundation import NEEDS, RANDOM, kind_of, locate

TIMM, IMAGENET = "timm/", "imagenet"
SAM3_SIZES = ("small", "tiny", "full")
_MEAN_OF_HALF = (0.5, 0.5, 0.5)


class Tokens(NamedTuple):
    """Of N pictures: the class token (N, D), None for encoders without one, and the map (N, h, w, D)."""

    cls: Tensor | None
    patches: Tensor


@dataclass(frozen=True, eq=False)
class Encoder:
    """
    Args:
        name: as the user typed it.
        dim: D.
        cell: side in pixels of what one vector of the map stands for.
        multiple: the side of pictures must be a multiple of it.
        intensity: how values of pictures must be treated, a policy of `data.intensity`.
        has_cls: whether there is a class token.
        sha256: of the weights.
        parameters: millions of them.
        run: (N, 3, S, S) pictures to tokens.
        fixed: the only side it takes; None for any.
        prepare: called with the side before pictures of it come.
        precision: that it computes in, as torch names it.
    """

    name: str
    dim: int
    cell: int
    multiple: int
    intensity: str
    has_cls: bool
    sha256: str
    licence: str
    parameters: float
    run: Callable[[Tensor], Tokens]
    fixed: int | None = None
    prepare: Callable[[int], None] = field(default=lambda side: None)
    precision: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The vectors that a picture gets: its class token, and the mean of the map."""
        return ("cls", "mean") if self.has_cls else ("mean",)

    def at(self, side: int) -> tuple[int, int]:
        """Get ready for pictures of this side; (h, w) of their maps.

        Raises:
            InputError: the encoder does not take this side.
        """
        if self.fixed not in (None, side):
            raise InputError(f"encoder {self.name!r}", f"takes no {side} pixels", f"Type --side {self.fixed}.")
        if side < self.multiple or side % self.multiple:
            near = max(self.multiple, round(side / self.multiple) * self.multiple)
            cause = f"takes multiples of {self.multiple} pixels, not {side}"
            raise InputError(f"encoder {self.name!r}", cause, f"Type --side {near}.")
        self.prepare(side)
        return side // self.cell, side // self.cell

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) to vectors (N, K, D) in the order of `kinds`, and maps (N, h, w, D); float32."""
        with LongAttentionByHead():
            cls, patches = self.run(pictures)
        patches = patches.float()
        mean = patches.mean((1, 2))
        return torch.stack([cls.float(), mean] if cls is not None else [mean], 1), patches


def load_encoder(
    name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, threads: int | None = None
) -> Encoder:
    """
    Args:
        dtype: of weights and of what is computed; graphs of ONNX keep theirs.
        seed: of random weights.
        threads: of ONNX Runtime, by default as torch.

    Raises:
        InputError: there is no such encoder, its weights are not on this machine, or a package is missing.
    """
    found = _loaded(name, dtype, seed, threads)
    return replace(found, precision=found.precision or str(dtype).removeprefix("torch."))


def _loaded(name: str, dtype: torch.dtype, seed: int, threads: int | None) -> Encoder:
    if name.startswith(RANDOM):
        return _random(name, name.removeprefix(RANDOM), dtype, seed)
    if name.startswith(TIMM):
        return _timm(name, name, dtype, trained=True, seed=seed)
    if name == IMAGENET:
        return _imagenet(dtype)
    kind = kind_of(name)
    if kind == "dinov3":
        from lexitome.models.dinov3.weights import load_dinov3

        found = load_dinov3(name)
        return _dinov3(name, found.net, (found.intensity, found.sha256, found.licence), dtype)
    if kind == "sam3":
        from lexitome.models.sam3.weights import load_sam3

        loaded = load_sam3(name, dtype=dtype)
        return _sam3(name, loaded.net, loaded.sha256, loaded.licence)
    return _sam(name, dtype) if kind == "sam" else _compact(name, threads or torch.get_num_threads())


def _random(name: str, size: str, dtype: torch.dtype, seed: int) -> Encoder:
    """`random:...`: what an architecture sees before it has learned anything."""
    if size.startswith(TIMM):
        return _timm(name, size, dtype, trained=False, seed=seed)
    from lexitome.models.dinov3.presets import PRESETS, build

    preset = size.removeprefix("dinov3-").replace("-", "_")
    known = {each: each for each in PRESETS}
    if preset in known:
        net = build(known[preset], seed)
        return _dinov3(name, net, ("imagenet", hash_of(net.state_dict()), "none: random weights"), dtype)
    if size.startswith("sam3-") and size.removeprefix("sam3-") in SAM3_SIZES:
        from lexitome.models.sam3.presets import build as build_sam3
        from lexitome.models.sam3.presets import config_of

        model = _cast(build_sam3(config_of(size.removeprefix("sam3-")), seed).model, dtype)  # type: ignore[arg-type]
        return _sam3(name, model, hash_of(model.vision_encoder.backbone.state_dict()), "none: random weights")
    names = ", ".join((*PRESETS, *(f"sam3-{each}" for each in SAM3_SIZES), f"{TIMM}NAME"))
    raise InputError(f"encoder {name!r}", "there is no such architecture", f"After {RANDOM} write one of {names}.")


def _dinov3(name: str, net: Any, about: tuple[str, str, str], dtype: torch.dtype) -> Encoder:
    intensity, sha256, licence = about
    net = _cast(net.freeze(), dtype)

    def run(pictures: Tensor) -> Tokens:
        found = net.features(pictures)
        return Tokens(found.cls, found.patches)

    return Encoder(name, net.dim, net.patch, net.patch, intensity, True, sha256, licence, _millions(net), run)


def _sam3(name: str, model: Any, sha256: str, licence: str) -> Encoder:
    """The trunk alone, before the neck: (N, D, h, w) of patches of 14 pixels."""
    from lexitome.models.sam3.network import Sam3Net
    from lexitome.models.sam3.presets import set_side

    net = Sam3Net(model)
    backbone = model.vision_encoder.backbone.eval().requires_grad_(False)
    config: Any = model.config.vision_config.backbone_config

    def run(pictures: Tensor) -> Tokens:
        seen = backbone(pictures.to(next(backbone.parameters()).dtype)).last_hidden_state
        return Tokens(None, seen.unflatten(1, (math.isqrt(seen.shape[1]), -1)))

    patch = int(config.patch_size)
    return Encoder(
        name, int(config.hidden_size), patch, patch, "half", False, sha256, licence, _millions(backbone), run,
        prepare=lambda side: set_side(net, side),
    )  # fmt: skip


def _sam(name: str, dtype: torch.dtype) -> Encoder:
    from lexitome.models.foundation import FOUNDATION
    from lexitome.models.sam_boxes import load_sam

    loaded = load_sam(locate(name))
    model = loaded.model.to(dtype).requires_grad_(False)

    def run(pictures: Tensor) -> Tokens:
        return Tokens(None, model.get_image_embeddings(pictures.to(dtype)).permute(0, 2, 3, 1))

    config = model.config.vision_config
    return Encoder(
        name, int(config.output_channels), int(config.patch_size), int(config.patch_size), "imagenet", False,
        loaded.sha256, FOUNDATION["sam"].licence, _millions(model.vision_encoder), run, fixed=loaded.side,
    )  # fmt: skip


def _compact(name: str, threads: int) -> Encoder:
    """The graph that ships. It takes one picture at a time, 0 to 255, and its tokens have a stride of 16 pixels."""
    import onnxruntime

    card = find_model(name)
    graph = card.files.joinpath("encoder.onnx").read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    dim = next(each.shape[1] for each in session.get_outputs() if each.name == "tokens")

    def run(pictures: Tensor) -> Tokens:
        one_by_one = [session.run(["tokens"], {"pictures": each[None]})[0] for each in pictures.float().numpy()]
        tokens = torch.cat([torch.from_numpy(each) for each in one_by_one])
        return Tokens(None, tokens.permute(0, 2, 3, 1))

    sha256 = hashlib.sha256(graph).hexdigest()
    millions = len(graph) / 4e6  # float32: the graph is little besides its weights
    return Encoder(name, dim, 16, 32, "rgb255", False, sha256, card.weights_licence, millions, run, precision="float32")


def _imagenet(dtype: torch.dtype) -> Encoder:
    """What the compact model's backbone knew before it saw a medical image."""
    from lexitome.models.efficientnet_lite import load_imagenet

    try:
        net = load_imagenet(0).eval().requires_grad_(False).to(dtype)
    except ModuleNotFoundError as error:
        raise InputError(f"encoder {IMAGENET!r}", str(error), NEEDS) from error
    sha256 = hash_of(net.state_dict())

    def run(pictures: Tensor) -> Tokens:
        return Tokens(None, net(pictures.to(dtype))[-1].permute(0, 2, 3, 1))

    return Encoder(IMAGENET, net.channels[-1], 32, 32, "half", False, sha256, "Apache-2.0", _millions(net), run)


def _timm(name: str, typed: str, dtype: torch.dtype, *, trained: bool, seed: int) -> Encoder:
    from lexitome.models import timm_nets

    opened = timm_nets.open_net(name, typed.removeprefix(TIMM), trained=trained, seed=seed)
    net = opened.net

    def run(pictures: Tensor) -> Tokens:  # weights as they are: families differ in what may not be bfloat16
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return Tokens(*opened.tokens(pictures))

    intensity = "half" if opened.mean == _MEAN_OF_HALF else "imagenet"
    return Encoder(
        name, int(net.num_features), opened.stride, opened.stride, intensity, opened.has_cls,
        hash_of(net.state_dict()), opened.licence if trained else "none: random weights", _millions(net), run,
    )  # fmt: skip


def _cast(net: Any, dtype: torch.dtype) -> Any:
    """Parameters, not buffers: frequencies of positions in bfloat16 would move patches about."""
    for each in net.parameters():
        each.data = each.data.to(dtype)
    return net


def hash_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _millions(net: nn.Module) -> float:
    return sum(each.numel() for each in net.parameters()) / 1e6
