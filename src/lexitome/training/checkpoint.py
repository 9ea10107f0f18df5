"""Checkpoints that are there whole or not at all: a folder of safetensors and a `state.json`, nothing pickled.

`NAME/model.safetensors`, `NAME/average.safetensors` (if the run averages), `NAME/optimizer.safetensors` (one tensor per
parameter and moment, "blocks.0.weight.exp_avg") and `NAME/state.json`. Tensors are whole, whatever number of ranks
shared them, so any number of ranks may continue.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lexitome.errors import InputError

FORMAT = 1
FREE_SPACE = "Free some space and continue with --resume; what was saved before is intact."
Tensors = dict[str, Tensor]


def write(folder: Path, name: str, parts: Iterable[tuple[str, Tensors]], state: Mapping[str, Any]) -> None:
    """Write the checkpoint `folder/name`, in place of one that is there.

    It is complete under another name before the old one steps aside, and the old one is removed only then. A process
    that dies between the two renames leaves the old one as `.NAME.old`, where `locate` finds it.

    Raises:
        InputError: it cannot be written, for example because the disk is full; the old one is as it was.
    """
    temporary = folder / f".{name}.{secrets.token_hex(6)}"
    try:
        temporary.mkdir(parents=True)
        for part, tensors in parts:
            save_file(tensors, temporary / f"{part}.safetensors")
        (temporary / "state.json").write_text(json.dumps({"format": FORMAT, **state}, indent=1), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _reach_the_disk(path)
        _exchange(temporary, folder, name)
    except (OSError, SafetensorError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(folder / name, f"cannot be written ({cause})", FREE_SPACE) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(temporary: Path, folder: Path, name: str) -> None:
    final, old = folder / name, folder / f".{name}.old"
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except OSError:
        if not final.exists() and old.exists():
            os.rename(old, final)
        raise
    _reach_the_disk(folder)
    shutil.rmtree(old, ignore_errors=True)


def _reach_the_disk(path: Path) -> None:
    """Without this a power failure after the renames could leave empty files under the final name."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def locate(folder: Path, name: str) -> Path | None:
    """The newest complete checkpoint called `name` in `folder`, if there is one."""
    return next((path for path in (folder / name, folder / f".{name}.old") if (path / "state.json").is_file()), None)


def tidy(folder: Path, name: str) -> None:
    """Undo what a killed process left: unfinished copies go, an old checkpoint without a successor gets its name back.
    For the run that owns the folder; readers use `locate`."""
    final, old = folder / name, folder / f".{name}.old"
    if not final.exists() and locate(folder, name) == old:
        os.rename(old, final)
    for left in folder.glob(f".{name}.*"):
        shutil.rmtree(left, ignore_errors=True)


def read_state(path: Path) -> dict[str, Any]:
    """`state.json` of the checkpoint `path`.

    Raises:
        InputError: it cannot be read or is of another format.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, f"is no checkpoint ({error})", "Start again in another folder.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(path, "is a checkpoint of another version", "Start again in another folder.")
    return state


def read(path: Path, part: str) -> Tensors:
    """Tensors of one part ("model", "average", "optimizer") of the checkpoint `path`, on the CPU.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = path / f"{part}.safetensors"
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(file, f"cannot be read ({error})", "Start again in another folder.") from error


def load_weights(model: nn.Module, path: Path, *, averaged: bool = True) -> None:
    """Give `model` the weights of the checkpoint `path`: the averaged ones if wanted and kept, else the trained ones.

    Raises:
        InputError: the checkpoint is damaged or of another model.
    """
    part = "average" if averaged and (path / "average.safetensors").is_file() else "model"
    copy_into(model_tensors(model), read(path, part), path / f"{part}.safetensors")


def model_tensors(model: nn.Module) -> Tensors:
    """The state of `model` by name, as references: copying into them changes the model."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> Tensors:
    """The tensors as safetensors wants them: on the CPU, contiguous, none sharing memory with another. Sliced ones are
    put together, for which every rank has to call this; with `keep` False the result is empty, since rank 0 alone
    writes. What needs no change is not copied."""
    found: Tensors = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        full = (value.full_tensor() if isinstance(value, DTensor) else value).detach()
        if keep:
            place = full.untyped_storage().data_ptr()
            found[name] = (full.clone() if place in seen else full).cpu().contiguous()
            seen.add(place)
    return found


@torch.no_grad()
def copy_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor], origin: Path) -> None:
    """Copy whole tensors into those of `target`, shards included.

    Raises:
        InputError: names or shapes differ; `origin` is the file that `source` came from.
    """
    odd = sorted(target.keys() ^ source.keys())
    odd += [name for name in target.keys() & source.keys() if target[name].shape != source[name].shape]
    if odd:
        cause = f"is of another model: {len(odd)} tensors differ, such as {odd[0]}"
        raise InputError(origin, cause, "Use the model that was trained, or another folder.")
    for name, value in target.items():
        value.copy_(_like(value, source[name]))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """What the optimiser remembers (moments, step counts) by parameter name, as references."""
    state = optimizer.state
    return {
        f"{name}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in _optimised(model, optimizer)
        for key, value in state.get(parameter, {}).items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, source: Tensors, origin: Path) -> None:
    """Give `optimizer` what `optimizer_tensors` saved.

    Raises:
        InputError: a tensor belongs to no optimised parameter.
    """
    memory: dict[str, dict[str, Tensor]] = {}
    for full_name, value in source.items():
        owner, _, key = full_name.rpartition(".")
        memory.setdefault(owner, {})[key] = value
    packed = optimizer.state_dict()
    packed["state"] = {}
    for index, (name, parameter) in enumerate(_optimised(model, optimizer)):
        if name in memory:
            packed["state"][index] = {
                key: _like(parameter, value) if key != "step" and value.shape == parameter.shape else value
                for key, value in memory.pop(name).items()
            }
    if memory:
        cause = f"has state of {len(memory)} parameters that are not trained here, such as {next(iter(memory))}"
        raise InputError(origin, cause, "Freeze what was frozen before, or use another folder.")
    optimizer.load_state_dict(packed)


def _optimised(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """(name, parameter) in the order in which the optimiser numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return ((names[id(p)], p) for group in optimizer.param_groups for p in group["params"])


def _like(target: Tensor, value: Tensor) -> Tensor:
    """`value` on the device, in the memory order and with the slices of `target`."""
    if isinstance(target, DTensor):
        # Every rank has read the whole tensor: None says that nothing needs to be sent.
        moved = value.to(target.device)
        return distribute_tensor(moved, target.device_mesh, target.placements, src_data_rank=None)
    return torch.empty_like(target, dtype=value.dtype).copy_(value)


def first_difference(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """The first field in which two configurations differ, in words; both as `json` reads them. A field that `stored`
    lacks is new, and its default does as the earlier version did."""
    before, now = dict(_flat("", stored)), dict(_flat("", current))
    for field in before:
        if field not in now or before[field] != now[field]:
            return f"{field} is {now.get(field)!r}, the run began with {before.get(field)!r}"
    return None


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value
