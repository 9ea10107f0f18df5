"""Models whose weights the user brings: what they are, what their licences ask, where they lie. No torch here.

Weights are looked for in the folder that the environment variable `LEXITOME_WEIGHTS` names, and among what the tools of
Hugging Face downloaded. Nothing is downloaded unless the user names a repository (`models.hub`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lexitome.errors import InputError
from lexitome.models import hub
from lexitome.models.catalog import CATALOG, FILES, find_model

Kind = Literal["compact", "sam3", "sam"]
WEIGHTS_FOLDER = "LEXITOME_WEIGHTS"
SAM_LICENCE = "SAM License"
TENSOR_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
NEEDS = 'Type: pip install "lexitome[train]"'


@dataclass(frozen=True)
class FoundationModel:
    """
    Args:
        hub: repository on Hugging Face.
        file: what to load of it; "" for a folder of transformers.
        duties: what the licence asks of users, and where what is said of it was found to differ.
        get: what to do and to type, in order, to have the weights here; one sentence without its full stop.
    """

    name: str
    kind: Kind
    summary: str
    size_gb: float
    licence: str
    duties: str
    hub: str
    file: str
    get: str

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.hub}"

    @property
    def remedy(self) -> str:
        """What to do where the weights are missing or unusable, in one line."""
        return f"{self.get}. Or name weights you have: --model FOLDER|FILE. {self.licence}: {self.duties}."


_SAM_DUTIES = "derived weights stay under it, publications acknowledge SAM, military uses are barred"
FOUNDATION: dict[str, FoundationModel] = {
    model.name: model
    for model in (
        FoundationModel(
            "sam3", "sam3", "SAM 3 as released: any words, boxes; volumes by its tracker. Photographs and videos.", 3.4,
            SAM_LICENCE, _SAM_DUTIES, "facebook/sam3", "",
            "Accept the licence at https://huggingface.co/facebook/sam3, then type: hf auth login, and: "
            "hf download facebook/sam3 --exclude sam3.pt",
        ),
        FoundationModel(
            "medical-sam3", "sam3", "SAM 3 fine-tuned on 33 medical 2D sets (Medical SAM3).", 10.1,
            SAM_LICENCE, f"{_SAM_DUTIES}; the card says MIT, which weights derived from SAM 3 cannot be",
            "ChongCong/Medical-SAM3", "checkpoint_2D.pt",
            "Type: hf download ChongCong/Medical-SAM3 checkpoint_2D.pt, and for its words: "
            "hf download openai/clip-vit-base-patch32 tokenizer.json",
        ),
        FoundationModel(
            "sam", "sam", "SAM (ViT-B): boxes only; the baseline of `lexitome evaluate`.", 0.4,
            "Apache-2.0", "keep its notice", "facebook/sam-vit-base", "",
            "Type: hf download facebook/sam-vit-base --exclude '*.bin' '*.h5'",
        ),
    )
}  # fmt: skip


def kind_of(model: str | Path) -> Kind:
    """Which family a model belongs to, by its name, file, folder or repository; its weights need not be here.

    Raises:
        InputError: it is no model; the message says which names there are.
    """
    typed = str(model)
    if typed in CATALOG:
        return "compact"
    if typed in FOUNDATION:
        return FOUNDATION[typed].kind
    path = Path(model).expanduser()
    if path.is_file() and path.suffix.lower() in TENSOR_FILES:
        return "sam3"
    if path.is_dir() and not path.joinpath(FILES[0]).is_file():
        stored = read_config(path)
        if str(stored.get("model_type", "")).startswith("sam"):
            return "sam" if stored["model_type"] == "sam" else "sam3"
        if weights_in(path):
            return "sam3"
    known = _of_repository(typed)
    if not path.exists() and (known is not None or hub.is_named(typed)):
        return "sam3" if known is None else known.kind
    inside = path / "model"  # of the folder of a training run
    if str(read_config(inside).get("model_type", "")).startswith("sam3"):
        raise InputError(path, "holds no model", f"Did you mean {inside}?")
    try:
        find_model(model)
    except InputError as error:
        if path.exists():
            raise
        names = ", ".join((*CATALOG, *FOUNDATION))
        remedy = f"Choose from {names}; or name a folder or file of weights, or hf:OWNER/NAME on Hugging Face."
        raise InputError(error.path, error.cause, remedy) from None
    return "compact"


def locate(model: str | Path) -> Path:
    """The file or folder of weights of a foundation model.

    Raises:
        InputError: they are not here; the message says where to get them, under which licence, and what to type.
    """
    typed, path = str(model), Path(model).expanduser()
    if typed in FOUNDATION:
        found = _here(FOUNDATION[typed])
        if found is None:
            raise InputError(f"model {typed!r}", "its weights are not on this machine", FOUNDATION[typed].remedy)
        return found
    if path.exists():
        return path
    known = _of_repository(typed)
    if known is None:
        return hub.fetch(typed, remedy=FOUNDATION["sam3"].remedy)
    return hub.fetch(typed, remedy=known.remedy, file=known.file)


def is_here(name: str) -> bool:
    """Whether the weights of a model of `FOUNDATION` are on this machine."""
    return _here(FOUNDATION[name]) is not None


def _of_repository(typed: str) -> FoundationModel | None:
    """The model that a repository of this name holds, if it is one of `FOUNDATION`."""
    return next((known for known in FOUNDATION.values() if known.hub == hub.parse(typed)[0]), None)


def _here(model: FoundationModel) -> Path | None:
    if os.environ.get(WEIGHTS_FOLDER):
        folder = Path(os.environ[WEIGHTS_FOLDER]).expanduser()
        places = (folder / model.name, *(folder / f"{model.name}{ending}" for ending in TENSOR_FILES))
        if found := next((place for place in places if place.exists()), None):
            return found
    return hub.cached(model.hub, model.file)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder, empty where there is none that can be read."""
    try:
        stored = json.loads(folder.joinpath("config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def weights_in(path: Path) -> list[Path]:
    """The files to read of a folder (or the file itself): safetensors, in parts or one, else what torch saved.

    Empty where there are none. Several that torch saved are several models: all are returned, for the caller to refuse.
    """
    if path.is_file():
        return [path]
    if (path / INDEX).is_file():
        return sorted({path / name for name in _parts(path / INDEX)})
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    return sorted(each for each in path.iterdir() if each.suffix in TENSOR_FILES[1:])


def _parts(index: Path) -> Iterator[str]:
    try:
        stored = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        # names only: an index must not lead out of its folder
        yield from (Path(str(name)).name for name in dict(stored).values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(index, f"is no index of weights ({error!r})", "Download it again.") from error


def identity(model: str | Path) -> str:
    """What tells one model from another of the same name: of ours the card, of others their files' sizes and times.

    Raises:
        InputError: there is no such model, or its weights are not here.
    """
    if kind_of(model) == "compact":
        return find_model(model).measure_card()
    path = locate(model)
    digest = hashlib.sha256()
    for file in sorted({*weights_in(path), *((path.glob("*.json")) if path.is_dir() else ())}):
        known = file.stat()
        digest.update(f"{file.name} {known.st_size} {known.st_mtime_ns}\n".encode())
    return digest.hexdigest()
