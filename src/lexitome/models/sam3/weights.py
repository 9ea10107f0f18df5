"""SAM3 from any layout its weights come in, every tensor in its place or not at all, and back to disk.

Layouts: the official file (`detector.*`, `tracker.*`; also Medical SAM3's, without prefixes and inside a trainer's
checkpoint), and transformers' `Sam3Model` and `Sam3VideoModel` (safetensors). The network is built without memory and
takes the memory-mapped tensors as they are: loading needs no second copy of the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Sam3Config, Sam3Model, Sam3TrackerVideoConfig, Sam3VideoConfig
from transformers.initialization import no_init_weights

from lexitome.errors import InputError
from lexitome.models import hub
from lexitome.models.foundation import FOUNDATION, SAM_LICENCE, SINGLE, locate
from lexitome.models.reading import SIDECAR, Family, Stored, check_places, convert, hash_of, read, read_safetensors
from lexitome.models.sam3.conversion import in_full, left_out, to_official, to_ours
from lexitome.models.sam3.names import OURS_DETECTOR, OURS_TRACKER, layout, prefixed
from lexitome.models.sam3.tracker import Sam3Tracker, tracker_config
from lexitome.models.writing import check_place, replacing, write_json

Net = TypeVar("Net", bound=nn.Module)
GET = FOUNDATION["sam3"].remedy
SAM3 = Family("SAM3", ("sam3", "sam3_video"), GET)
EXTRAS = "official_extras.safetensors"
"""In a folder that we wrote: what the official layout has and transformers leaves out."""
TOKEN_FILES = ("tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz")
TOKENS_OF = ("facebook/sam3", "openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14")
"""Repositories with the same tokenizer, for weights that come without one."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """
    Args:
        net: transformers' `Sam3Model`, in evaluation mode.
        tracker: None where none was asked for, or the weights have none.
        tokens_folder: where the tokenizer lies, None if it is not on this machine.
        settings: what was stored with the weights, see `settings.Settings`; {} for those of others.
        source: as the user typed it.
        files: that the weights lie in.
        kept: what the official layout has and transformers leaves out, for `save_official`.
    """

    net: Sam3Model
    tracker: Sam3Tracker | None
    tokens_folder: Path | None
    settings: dict[str, Any]
    source: str
    files: tuple[Path, ...]
    licence: str
    kept: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Of the files. Computed when first asked for, since it takes seconds."""
        return hash_of(self.files)


def load_sam3(
    source: str | Path, *, dtype: torch.dtype = torch.float32, tracker: bool = False, mapped: tuple[str, ...] = ()
) -> Loaded:
    """
    Args:
        source: a name of `foundation.FOUNDATION`, a file, a folder, or `hf:OWNER/NAME`.
        dtype: of the weights in memory. Those that are stored in it stay mapped to their file.
        tracker: load the tracker too, if the weights have one.
        mapped: beginnings of names of the detector that stay mapped to their file whatever `dtype` is, so that they
            take no memory while they are not used.

    Raises:
        InputError: the weights are missing, of another model, incomplete, damaged, not finite, or hold code.
    """
    path = locate(source)
    stored = read(path, SAM3)
    detector_config, stored_tracker = _configurations(stored, path)
    detector, tracked, kept = _sorted(stored, path)
    net = _filled(lambda: Sam3Model(detector_config), detector, dtype, path, mapped)
    found = None
    if tracker and any(name.startswith(OURS_TRACKER) for name in tracked):
        vision: Any = net.config.vision_config
        config = stored_tracker or tracker_config(vision)
        found = _filled(lambda: Sam3Tracker(config), tracked, dtype, path)
    folder = path if path.is_dir() else path.parent
    return Loaded(
        net, found, _tokens_folder(folder), dict(stored.about.get("settings", {})), str(source), stored.files,
        str(stored.about.get("licence", SAM_LICENCE)), kept,
    )  # fmt: skip


def _sorted(stored: Stored, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the detector and of the tracker under our names, and what transformers leaves out."""
    side = layout(stored.tensors)
    full = {prefixed(name, side): value for name, value in stored.tensors.items()}
    if len(full) < len(stored.tensors):
        raise InputError(path, "holds some tensors twice, under names that differ by prefix only", GET)
    kept = read_safetensors(path / EXTRAS) if path.is_dir() and (path / EXTRAS).is_file() else {}
    if side == "official":
        try:
            full, kept = to_ours(full)
        except ValueError as error:
            raise InputError(path, f"does not fit SAM3: {error}", GET) from error
    detector = {n.removeprefix(OURS_DETECTOR): value for n, value in full.items() if n.startswith(OURS_DETECTOR)}
    return detector, {n: value for n, value in full.items() if not n.startswith(OURS_DETECTOR)}, kept


def _configurations(stored: Stored, path: Path) -> tuple[Sam3Config, Sam3TrackerVideoConfig | None]:
    """Of detector and tracker; without a stored one that of the released SAM3."""
    try:
        if stored.config.get("model_type") == "sam3_video":
            both = Sam3VideoConfig.from_dict(stored.config)
            return both.detector_config, both.tracker_config  # type: ignore[return-value]
        return Sam3Config.from_dict(stored.config) if stored.config else Sam3Config(), None
    except Exception as error:  # of transformers and huggingface_hub, of several kinds
        cause = f"has a configuration that cannot be used ({str(error).splitlines()[0][:160]})"
        raise InputError(path, cause, GET) from error


def _filled(
    make: Callable[[], Net], state: dict[str, Tensor], dtype: torch.dtype, path: Path, mapped: tuple[str, ...] = ()
) -> Net:
    """A network of `make` that holds exactly the tensors of `state`, in evaluation mode."""
    with torch.device("meta"), no_init_weights():
        net = make()
    check_places(net.state_dict(), state, path, SAM3)
    convert(state, dtype, path, mapped)
    net.load_state_dict(state, assign=True)
    for part in net.modules():
        if isinstance(part, PreTrainedModel):
            _fill_buffers(part)
    return net.eval()


def _fill_buffers(net: PreTrainedModel) -> None:
    """Positions and rotary frequencies, which are computed and not stored, by transformers' own initialisation.

    It leaves alone whatever is marked as initialised. A value that stays as it is here would be one that it forgot.
    """
    for parameter in net.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    fresh: list[Tensor] = []
    for module in net.modules():
        empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        module._is_hf_initialized = not empty  # type: ignore[assignment]
        for name in empty:
            like = module.get_buffer(name)
            fill = math.nan if like.is_floating_point() else -1
            setattr(module, name, torch.full_like(like, fill, device="cpu"))
            fresh.append(module.get_buffer(name))
    net.initialize_weights()
    if any(each.is_meta for each in net.buffers()) or not all(bool((buffer >= 0).all()) for buffer in fresh):
        raise RuntimeError("this version of transformers leaves positions of SAM3 uncomputed")


def _tokens_folder(folder: Path) -> Path | None:
    for place in (folder, folder / "assets"):
        if any(place.joinpath(name).is_file() for name in TOKEN_FILES):
            return place
    found = (hub.cached(repository, name) for repository in TOKENS_OF for name in TOKEN_FILES[:2])
    return next((path.parent for path in found if path is not None), None)


def save_official(
    model: Sam3Model, path: Path, tracker: Sam3Tracker | None = None, *, kept: Mapping[str, Tensor] | None = None
) -> tuple[str, ...]:
    """Write a file that the official code reads (`detector.*`, `tracker.*`), as `load_sam3` does.

    Args:
        kept: `Loaded.kept` of the weights that the model began with; written back as it was.

    Returns:
        Notes: what was not there to be written back, and what stands for it.

    Raises:
        InputError: the file cannot be written; an old one is as it was.
    """
    kept = kept or {}
    made = left_out(model)
    if any(name.endswith("freqs_cis_real") for name in kept):
        made = {name: value for name, value in made.items() if not name.endswith("freqs_cis")}
    ours = in_full(_values(model), {} if tracker is None else _values(tracker))
    official = to_official(ours, {**made, **kept})
    config = _both(model, tracker) if tracker is not None else model.config
    with replacing(path) as temporary:
        torch.save({"model": official, "config": json.loads(config.to_json_string(use_diff=False))}, temporary)
    notes = []
    if any("points_" in name for name in made.keys() - kept.keys()):
        notes.append("what encodes points as exemplars is 0: transformers has no place for it, SAM3 does not use it")
    if not any(name.endswith("pos_embed") for name in kept):
        notes.append("the position of the class token is 0: nothing reads it")
    return tuple(notes)


def save_folder(
    model: Sam3Model,
    folder: Path,
    settings: Mapping[str, Any],
    tokens: Any = None,
    *,
    tracker: Sam3Tracker | None = None,
    kept: Mapping[str, Tensor] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that transformers reads (`Sam3Model`, with a tracker `Sam3VideoModel`), and `load_sam3` too.

    Args:
        settings: `settings.Settings.to_json()`, stored beside the weights.
        tokens: a `tokens.Tokens`, saved into it.
        kept: as of `save_official`; stored too, but for rotations, which can be computed.
        about: anything else to be stored: name, licence (by default that of SAM3), provenance.

    Raises:
        InputError: the folder holds something else, or cannot be written; an old one is as it was.
    """
    check_place(folder)
    state = _values(model) if tracker is None else in_full(_values(model), _values(tracker))
    config = model.config if tracker is None else _both(model, tracker)
    stored = json.loads(config.to_json_string(use_diff=False))
    stored["architectures"] = ["Sam3Model" if tracker is None else "Sam3VideoModel"]
    extras = {name: value.contiguous() for name, value in (kept or {}).items() if not value.is_complex()}
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        save_file({name: v.contiguous() for name, v in state.items()}, temporary / SINGLE, metadata={"format": "pt"})
        if extras:
            save_file(extras, temporary / EXTRAS)
        if tokens is not None:
            tokens.save(temporary)
        write_json(temporary / "config.json", stored)
        described = {"licence": SAM_LICENCE, **(about or {}), "settings": dict(settings)}
        write_json(temporary / SIDECAR, described)


def _values(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def _both(model: Sam3Model, tracker: Sam3Tracker) -> Sam3VideoConfig:
    parts = (model.config.to_dict(), tracker.tracker_model.config.to_dict())
    return Sam3VideoConfig(detector_config=parts[0], tracker_config=parts[1])
