"""Networks of timm as encoders: by their names, with weights that are on this machine. Needs torch, and timm, which no
extra brings: pip install timm."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lexitome.errors import InputError
from lexitome.models import hub

_HEADS = ("head.", "fc.", "classifier.", "head_drop.", "fc_norm.")


@dataclass(frozen=True, eq=False)
class TimmNet:
    """
    Args:
        net: in evaluation mode, without a classifier and without gradients.
        stride: pixels that a vector of its last map stands for.
        has_cls: whether it has a class token.
        mean: that its pictures (0..1) are shifted by.
    """

    net: Any
    stride: int
    has_cls: bool
    mean: tuple[float, ...]
    licence: str

    def tokens(self, pictures: Tensor) -> tuple[Tensor | None, Tensor]:
        """Class token (N, D) or None, and the map (N, h, w, D), of whatever a family of timm calls features:
        (N, L, D), (N, D, h, w) or (N, h, w, D)."""
        seen = self.net.forward_features(pictures)
        if seen.dim() == 3:
            cells = (pictures.shape[-2] // self.stride, pictures.shape[-1] // self.stride)
            patches = seen[:, int(getattr(self.net, "num_prefix_tokens", 0)) :].unflatten(1, cells)
            return seen[:, 0] if self.has_cls else None, patches
        return None, seen if seen.shape[-1] == self.net.num_features else seen.permute(0, 2, 3, 1)


def open_net(name: str, typed: str, *, trained: bool, seed: int) -> TimmNet:
    """
    Args:
        name: for messages.
        typed: an architecture of timm, or ARCHITECTURE@FILE.
        trained: whether weights are wanted: those of the file, or those that were downloaded.
        seed: of random weights.

    Raises:
        InputError: timm is missing or knows no such model, or its weights are not here or of another model.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise InputError(f"encoder {name!r}", "needs timm, which is not installed", "Type: pip install timm") from error
    architecture, _, file = typed.partition("@")
    if not timm.is_model(architecture):
        remedy = "Names: python -c 'import timm; print(timm.list_models())'"
        raise InputError(f"encoder {name!r}", "timm knows no such model", remedy)
    described = timm.get_pretrained_cfg(architecture)
    settings: Mapping[str, Any] = described.to_dict() if described else {}
    place = Path(file).expanduser() if file else _downloaded(name, settings) if trained else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _created(timm.create_model, architecture)
    if trained and place is not None:
        _fill(net, place, name)
    return TimmNet(
        net.eval().requires_grad_(False), _stride(net), getattr(net, "cls_token", None) is not None,
        tuple(settings.get("mean") or ()), str(settings.get("license") or "see the page of the model"),
    )  # fmt: skip


def _created(create: Callable[..., Any], architecture: str) -> Any:
    """Without a head; transformers for pictures of any side, which convolutions take anyway."""
    try:
        return create(architecture, num_classes=0, dynamic_img_size=True)
    except TypeError:
        return create(architecture, num_classes=0)


def _downloaded(name: str, settings: Mapping[str, Any]) -> Path:
    repository = str(settings.get("hf_hub_id") or "")
    place = hub.cached(repository) if repository else None
    if place is None:
        remedy = f"Type: hf download {repository or 'REPOSITORY'}, or name a file: {name}@FILE."
        raise InputError(f"encoder {name!r}", "its weights are not on this machine", remedy)
    return place / "model.safetensors"


def _fill(net: nn.Module, place: Path, name: str) -> None:
    """Every weight in its place; of the file only a classifier may be left over."""
    try:
        state = importlib.import_module("timm.models").load_state_dict(str(place), weights_only=True)
        family = importlib.import_module(type(net).__module__)
        if hasattr(family, "checkpoint_filter_fn"):
            state = family.checkpoint_filter_fn(state, net)
        said = net.load_state_dict(state, strict=False)
    except Exception as error:  # of torch, safetensors and timm: several kinds
        cause = f"cannot be loaded as {name} ({str(error).splitlines()[0][:160]})"
        raise InputError(place, cause, "Check the file.") from error
    strays = [key for key in said.unexpected_keys if not key.startswith(_HEADS)]
    if said.missing_keys or strays:
        cause = f"is of another model: {len(said.missing_keys)} weights missing, {len(strays)} too many"
        raise InputError(place, cause, "Check the file, or the name of the architecture.")


def _stride(net: Any) -> int:
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if patch is not None and not getattr(net, "feature_info", None):
        return int(patch[0])
    return int(net.feature_info[-1]["reduction"])
