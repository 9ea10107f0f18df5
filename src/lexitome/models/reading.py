"""Tensors of a checkpoint, memory-mapped: nothing is read before it is used, and no pickled code is ever run."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import mmap
import pickle
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lexitome.errors import InputError, some
from lexitome.models.foundation import TENSOR_FILES, read_config, weights_in

SIDECAR = "lexitome.json"
"""In a folder that we wrote: what transformers has no place for."""
SUFFICIENT = 0.5
"""A checkpoint of which less than this share is known is one of another model."""
_SCALAR = np.float64(0).__reduce__()[0]  # what makes a NumPy number of its bytes
_PLAIN_NUMPY: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")), np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")),
]  # fmt: skip
"""Trainers log their losses as NumPy numbers in the checkpoint; these types hold values and run nothing."""


@dataclass(frozen=True)
class Family:
    """
    Args:
        name: for messages.
        types: `model_type` in configurations of transformers.
        get: what to do where weights are missing or unusable, and what to type.
        keys: what trainers store the tensors under; the first that is there.
    """

    name: str
    types: tuple[str, ...]
    get: str
    keys: tuple[str, ...] = ("model", "state_dict")


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file or folder holds.

    Args:
        tensors: under the names they have there.
        config: of transformers, as JSON; empty where there is none.
        about: what we stored with the weights, in `SIDECAR` or under "lexitome" in a file; empty for those of others.
        files: that the tensors lie in.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    about: dict[str, Any]
    files: tuple[Path, ...]


def read(path: Path, family: Family) -> Stored:
    """A folder of transformers, or a file of either kind; a configuration may lie beside a file.

    Raises:
        InputError: there are no weights, several to choose from, or they are damaged, incomplete or hold code.
    """
    files = weights_in(path) if path.exists() else []
    if not files:
        endings = ", ".join(TENSOR_FILES)
        cause = f"holds no weights (model.safetensors, or a file that ends in {endings})"
        raise InputError(path, cause, family.get)
    if len(files) > 1 and any(file.suffix != ".safetensors" for file in files):
        names = ", ".join(file.name for file in files[:5])
        raise InputError(path, f"holds {len(files)} files of weights", f"Name one of them: {names}.")
    tensors: dict[str, Tensor] = {}
    beside: dict[str, dict[str, Any]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            tensors |= read_safetensors(file)
        else:
            tensors, beside = _read_torch(file, family)
    folder = path if path.is_dir() else path.parent
    config = beside.get("config") or read_config(folder)
    if config.get("model_type") not in family.types:
        if path.is_dir() and "model_type" in config:
            raise InputError(path, f"holds a model of type {config.get('model_type')!r}, not {family.name}", family.get)
        config = {}  # of something else in the same folder
    about = _sidecar(path) if path.is_dir() else beside.get("lexitome", {})
    return Stored(tensors, config, about, tuple(files))


def check_places(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, family: Family) -> None:
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
        known = f"{len(shared)} of {len(wanted)} tensors are there, not {some(missing)}"
        raise InputError(path, f"holds another model than {family.name}: {known}", family.get)
    causes = [
        f"{len(names)} tensors {what}: {some(names)}"
        for names, what in ((missing, "are missing"), (strange, "have no place"), (wrong, "have another size"))
        if names
    ]
    raise InputError(path, "; ".join(causes), f"Is its config.json beside it, and all of it here? {family.get}")


def convert(state: dict[str, Tensor], dtype: torch.dtype, path: Path, mapped: tuple[str, ...] = ()) -> None:
    """Check and convert tensors in place: each is read from disk once, and given back before the next.

    Args:
        mapped: beginnings of names that keep the type they have.

    Raises:
        InputError: values are not finite.
    """
    broken = []
    for name, value in state.items():
        if not is_finite(value):
            broken.append(name)
        if value.dtype != dtype:
            state[name] = value if name.startswith(mapped) else value.to(dtype)
            release(value)
    if broken:
        cause = f"{len(broken)} tensors hold values that are not finite: {some(broken)}"
        raise InputError(path, cause, "Take an earlier checkpoint of that training, or download it again.")


def hash_of(files: Iterable[Path]) -> str:
    """SHA-256 of the files, one after the other. Takes seconds for large ones."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Without a copy of it; what holds no numbers on the real line, or none at all, counts as finite."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return True
    return all(math.isfinite(float(bound)) for bound in torch.aminmax(tensor))


def release(tensor: Tensor) -> None:
    """Give back the memory of a mapped tensor that was copied: the system would keep pages of a file for as long as it
    has room, and count them as ours. They are read from the file again should anybody look."""
    if sys.platform != "linux" or not tensor.is_contiguous():
        return
    page = mmap.PAGESIZE
    first = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if end > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """
    Raises:
        InputError: the file is damaged or incomplete.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path, family: Family) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The weights, and what else is there by name, such as a configuration; state of optimizers and the rest of a
    trainer's checkpoint stay in the file. Official files hold the tensors themselves or under one of the keys."""
    try:
        with torch.serialization.safe_globals(_PLAIN_NUMPY):
            stored = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        found = str(error).partition("GLOBAL ")[2].split(" ")[0] or "something that is no tensor"
        cause = f"holds Python objects ({found}) that would run code when loaded, and is not opened"
        raise InputError(
            path, cause, "Ask whoever made it for safetensors, or for a file with tensors only."
        ) from error
    except RuntimeError as error:
        if "_use_new_zipfile_serialization" in str(error):
            cause = "is no file of torch 1.6 or later (or is cut short)"
            raise InputError(path, cause, f"Save it again with torch.save. {family.get}") from error
        raise _damaged(path, error) from error
    except (OSError, EOFError, ValueError, KeyError, AssertionError) as error:
        raise _damaged(path, error) from error
    beside = {k: v for k, v in stored.items() if isinstance(v, dict)} if isinstance(stored, dict) else {}
    for key in family.keys:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    tensors = {str(name): each for name, each in stored.items() if isinstance(each, Tensor)} if stored else {}
    if not tensors:
        raise InputError(path, "holds no tensors by name", family.get)
    return tensors, beside


def _damaged(path: Path, error: Exception) -> InputError:
    size = path.stat().st_size / 1e6 if path.is_file() else 0
    cause = f"is damaged or incomplete ({size:.1f} MB; {str(error).splitlines()[0][:120] if str(error) else error!r})"
    return InputError(path, cause, "Download or copy it again.")


def _sidecar(folder: Path) -> dict[str, Any]:
    path = folder / SIDECAR
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, f"is not JSON ({error})", "Export the model again.") from error
    if not isinstance(stored, dict):
        raise InputError(path, "is not a JSON object", "Export the model again.")
    return stored
