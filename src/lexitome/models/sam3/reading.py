"""Tensors of a checkpoint, memory-mapped: nothing is read before it is used, and no pickled code is ever run."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lexitome.errors import InputError
from lexitome.models.foundation import FOUNDATION, TENSOR_FILES, read_config, weights_in

GET = FOUNDATION["sam3"].remedy
EXTRAS = "official_extras.safetensors"
"""In a folder that we wrote: what the official layout has and transformers leaves out."""
_SCALAR = np.float64(0).__reduce__()[0]  # what makes a NumPy number of its bytes
_PLAIN_NUMPY: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")), np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")),
]  # fmt: skip
"""Trainers log their losses as NumPy numbers in the checkpoint; these types hold values and run nothing."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file or folder holds.

    Args:
        tensors: under the names they have there.
        config: of transformers, as JSON; empty where there is none.
        extras: what `EXTRAS` holds, under official names.
        files: that the tensors lie in.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    extras: dict[str, Tensor]
    files: tuple[Path, ...]


def read(path: Path) -> Stored:
    """A folder of transformers, or a file of either kind; a configuration may lie beside a file.

    Raises:
        InputError: there are no weights, several to choose from, or they are damaged, incomplete or hold code.
    """
    files = weights_in(path) if path.exists() else []
    if not files:
        endings = ", ".join(TENSOR_FILES)
        raise InputError(path, f"holds no weights (model.safetensors, or a file that ends in {endings})", GET)
    if len(files) > 1 and any(file.suffix != ".safetensors" for file in files):
        names = ", ".join(file.name for file in files[:5])
        raise InputError(path, f"holds {len(files)} files of weights", f"Name one of them: {names}.")
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".safetensors":
            tensors |= _read_safetensors(file)
        else:
            tensors, config = _read_torch(file)
    folder = path if path.is_dir() else path.parent
    config = config or read_config(folder)
    if not _is_sam3(config):
        if path.is_dir() and config:
            raise InputError(path, f"holds a model of type {config.get('model_type')!r}, not SAM3", GET)
        config = {}  # of something else in the same folder
    extras = folder / EXTRAS
    return Stored(
        tensors, config, _read_safetensors(extras) if path.is_dir() and extras.is_file() else {}, tuple(files)
    )


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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the configuration; state of optimizers and the rest of a trainer's checkpoint stay in the file.

    Official files hold the tensors themselves or under "model", as trainers' do; others under "state_dict".
    """
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
            raise InputError(path, cause, f"Save it again with torch.save. {GET}") from error
        raise _damaged(path, error) from error
    except (OSError, EOFError, ValueError, KeyError, AssertionError) as error:
        raise _damaged(path, error) from error
    config = stored.get("config") if isinstance(stored, dict) else None
    for key in ("model", "state_dict"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    tensors = {str(name): each for name, each in stored.items() if isinstance(each, Tensor)} if stored else {}
    if not tensors:
        raise InputError(path, "holds no tensors by name", GET)
    return tensors, config if isinstance(config, dict) else {}


def _damaged(path: Path, error: Exception) -> InputError:
    size = path.stat().st_size / 1e6 if path.is_file() else 0
    cause = f"is damaged or incomplete ({size:.1f} MB; {str(error).splitlines()[0][:120] if str(error) else error!r})"
    return InputError(path, cause, "Download or copy it again.")


def _is_sam3(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in ("sam3", "sam3_video")


def sidecar(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object beside the weights, empty where there is none.

    Raises:
        InputError: it is something else.
    """
    path = folder / name
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, f"is not JSON ({error})", "Export the model again.") from error
    if not isinstance(stored, dict):
        raise InputError(path, "is not a JSON object", "Export the model again.")
    return stored
