"""SAM3 from any layout its weights come in, every tensor in its place or not at all, and back to disk.

Layouts: the official file (`detector.*`, `tracker.*`; also Medical SAM3's, without prefixes and inside a trainer's
checkpoint), and transformers' `Sam3Model` and `Sam3VideoModel` (safetensors). The network is built without memory and
takes the memory-mapped tensors as they are: loading needs no second copy of the weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from lexitome.models.foundation import SAM_LICENCE, SINGLE, locate
from lexitome.models.sam3.conversion import in_full, left_out, to_official, to_ours
from lexitome.models.sam3.names import OURS_DETECTOR, OURS_TRACKER, layout, prefixed, some
from lexitome.models.sam3.reading import EXTRAS, GET, Stored, is_finite, read, release, sidecar
from lexitome.models.sam3.tracker import Sam3Tracker, tracker_config

Net = TypeVar("Net", bound=nn.Module)
SIDECAR = "lexitome.json"
TOKEN_FILES = ("tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz")
TOKENS_OF = ("facebook/sam3", "openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14")
"""Repositories with the same tokenizer, for weights that come without one."""
SUFFICIENT = 0.5
"""A checkpoint of which less than this share is known is one of another model."""


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
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()


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
    stored = read(path)
    detector_config, stored_tracker = _configurations(stored, path)
    detector, tracked, kept = _sorted(stored, path)
    net = _filled(lambda: Sam3Model(detector_config), detector, dtype, path, mapped)
    found = None
    if tracker and any(name.startswith(OURS_TRACKER) for name in tracked):
        vision: Any = net.config.vision_config
        config = stored_tracker or tracker_config(vision)
        found = _filled(lambda: Sam3Tracker(config), tracked, dtype, path)
    folder = path if path.is_dir() else path.parent
    described = sidecar(folder, SIDECAR) if path.is_dir() else {}
    return Loaded(
        net, found, _tokens_folder(folder), dict(described.get("settings", {})), str(source), stored.files,
        str(described.get("licence", SAM_LICENCE)), kept,
    )  # fmt: skip


def _sorted(stored: Stored, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the detector and of the tracker under our names, and what transformers leaves out."""
    side = layout(stored.tensors)
    full = {prefixed(name, side): value for name, value in stored.tensors.items()}
    if len(full) < len(stored.tensors):
        raise InputError(path, "holds some tensors twice, under names that differ by prefix only", GET)
    kept = stored.extras
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
    _check_places(net.state_dict(), state, path)
    broken = []
    for name, value in state.items():  # each is read from disk once, and given back before the next
        if not is_finite(value):
            broken.append(name)
        if value.dtype != dtype:
            state[name] = value if name.startswith(mapped) else value.to(dtype)
            release(value)
    if broken:
        cause = f"{len(broken)} tensors hold values that are not finite: {some(broken)}"
        raise InputError(path, cause, "Take an earlier checkpoint of that training, or download it again.")
    net.load_state_dict(state, assign=True)
    for part in net.modules():
        if isinstance(part, PreTrainedModel):
            _fill_buffers(part)
    return net.eval()


def _check_places(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Every tensor has a place, every place a tensor, and they fit.

    Raises:
        InputError: naming the first ten of each kind.
    """
    missing, strange = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    shared = wanted.keys() & found.keys()
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in shared if found[name].shape != wanted[name].shape
    ]  # fmt: skip
    if not (missing or strange or wrong):
        return
    if len(shared) < SUFFICIENT * len(wanted):
        cause = f"holds another model than SAM3: {len(shared)} of {len(wanted)} tensors are there, not {some(missing)}"
        raise InputError(path, cause, GET)
    causes = [
        f"{len(names)} tensors {what}: {some(names)}"
        for names, what in ((missing, "are missing"), (strange, "have no place"), (wrong, "have another size"))
        if names
    ]
    raise InputError(path, "; ".join(causes), f"Is its config.json beside it, and all of it here? {GET}")


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
    with _replacing(path) as temporary:
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
    _check_place(folder)
    state = _values(model) if tracker is None else in_full(_values(model), _values(tracker))
    config = model.config if tracker is None else _both(model, tracker)
    stored = json.loads(config.to_json_string(use_diff=False))
    stored["architectures"] = ["Sam3Model" if tracker is None else "Sam3VideoModel"]
    extras = {name: value.contiguous() for name, value in (kept or {}).items() if not value.is_complex()}
    with _replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        save_file({name: v.contiguous() for name, v in state.items()}, temporary / SINGLE, metadata={"format": "pt"})
        if extras:
            save_file(extras, temporary / EXTRAS)
        if tokens is not None:
            tokens.save(temporary)
        _write_json(temporary / "config.json", stored)
        described = {"licence": SAM_LICENCE, **(about or {}), "settings": dict(settings)}
        _write_json(temporary / SIDECAR, described)


def _values(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def _both(model: Sam3Model, tracker: Sam3Tracker) -> Sam3VideoConfig:
    parts = (model.config.to_dict(), tracker.tracker_model.config.to_dict())
    return Sam3VideoConfig(detector_config=parts[0], tracker_config=parts[1])


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_place(folder: Path) -> None:
    """A folder that is no model of ours is never replaced."""
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / SIDECAR).is_file())):
        raise InputError(folder, "holds something other than a model", "Choose another folder.")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error; what was there
    is removed last. Mapped tensors of an old file stay readable."""
    fresh, old = (path.with_name(f".{path.name}.{secrets.token_hex(6)}.{kind}") for kind in ("new", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        if path.is_dir():
            os.replace(path, old)
        os.replace(fresh, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        if old.exists() and not path.exists():
            os.replace(old, path)
        cause = f"cannot be written ({getattr(error, 'strerror', None) or str(error).splitlines()[0][:120]})"
        raise InputError(path, cause, "Free some space or choose another place.") from error
    finally:
        fresh.unlink(missing_ok=True) if fresh.is_file() else shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
