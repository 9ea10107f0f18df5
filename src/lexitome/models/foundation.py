"""Models whose weights the user brings: what they are, what their licences ask, where they lie. No torch here.

Weights are looked for in the folder that the environment variable `LEXITOME_WEIGHTS` names, and among what the tools of
Hugging Face downloaded. Nothing is downloaded unless the user names a repository (`models.hub`).
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lexitome.errors import InputError
from lexitome.models import hub
from lexitome.models.catalog import CATALOG, FILES, find_model

Kind = Literal["compact", "sam3", "sam", "dinov3", "segmenter", "specialist"]
"""A segmenter is a network for fixed targets, with a DINOv3 encoder (`lexitome train meddinov3`); a specialist is a
U-Net for those of one set (`lexitome train unet`), in a folder of its own or in a folder of several."""
WEIGHTS_FOLDER = "LEXITOME_WEIGHTS"
SAM_LICENCE = "SAM License"
DINO_LICENCE = "DINOv3 License"
TENSOR_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SEGMENTER = "segmenter.json"
"""The card of a segmenter (`inference.dinov3_card`)."""
SPECIALIST = "specialist.json"
"""The card of a specialist (`recipes.specialist`)."""
DINO_TYPE = "dinov3_vit"
"""`model_type` in configurations of transformers."""
_DINO_MARKS = (
    (b"storage_tokens", b"ls1.gamma"), (b"rope_embed.periods",), (b"reg_token", b"gamma_1"),
    (b"embeddings.register_tokens", b"layer_scale1.lambda1", b"attention.o_proj"),
)  # fmt: skip
"""Parts of names in the official layout, timm's and transformers', each group enough to know DINOv3."""
_MOST_NAMES = 1 << 25
"""Bytes of a file's list of names that are looked at."""
RANDOM = "random:"
"""Before the name of an architecture: in place of weights, what it is before it has learned anything."""
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
        named = "FOLDER|FILE" if self.kind == "dinov3" else "--model FOLDER|FILE"
        return f"{self.get}. Or name weights you have: {named}. {self.licence}: {self.duties}."


_DINO_DUTIES = (
    "derived weights stay under it and come with a copy, publications acknowledge DINOv3, military uses are barred"
)


def _dinov3(name: str, repository: str, size_gb: float, parameters: str) -> FoundationModel:
    """One of the sizes that Meta distilled from its largest, trained on 1.7 billion photographs (LVD-1689M)."""
    place = f"facebook/dinov3-{repository}-pretrain-lvd1689m"
    return FoundationModel(
        name, "dinov3", f"DINOv3 as released, {parameters} parameters: an encoder of pictures, to be probed and "
        "trained on.", size_gb, DINO_LICENCE, _DINO_DUTIES, place, "",
        f"Accept the licence at https://huggingface.co/{place}, then type: hf auth login, and: hf download {place}",
    )  # fmt: skip


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
        _dinov3("dinov3-s", "vits16", 0.09, "22 million"),
        _dinov3("dinov3-s-plus", "vits16plus", 0.11, "29 million"),
        _dinov3("dinov3-b", "vitb16", 0.34, "86 million"),
        _dinov3("dinov3-l", "vitl16", 1.2, "303 million"),
        _dinov3("dinov3-h-plus", "vith16plus", 3.4, "841 million"),
        FoundationModel(
            "meddinov3-b", "dinov3", "DINOv3 B trained on by 3.9 million CT slices (MedDINOv3).", 0.5,
            "Apache-2.0", "its card says so; whether weights that began as DINOv3's can leave the DINOv3 License is "
            "not resolved", "ricklisz123/MedDINOv3-ViTB-16-CT-3M", "model.pth",
            "Type: hf download ricklisz123/MedDINOv3-ViTB-16-CT-3M model.pth",
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
        return "dinov3" if _names_dinov3(path) else "sam3"
    if path.is_dir() and (kind := _of_folder(path)):
        return kind
    known = _of_repository(typed)
    if not path.exists() and (known is not None or hub.is_named(typed)):
        return _of_unknown(typed) if known is None else known.kind
    inside = path / "model"  # of the folder of a training run
    trained = str(read_config(inside).get("model_type", "")).startswith(("sam3", DINO_TYPE))
    if trained or (inside / SEGMENTER).is_file():
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


def locate(model: str | Path, remedy: str = "") -> Path:
    """The file or folder of weights of a foundation model.

    Args:
        remedy: what to do where a repository that is none of `FOUNDATION` cannot be had; by default SAM3's.

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
        return hub.fetch(typed, remedy=remedy or FOUNDATION["sam3"].remedy)
    return hub.fetch(typed, remedy=known.remedy, file=known.file)


def is_here(name: str) -> bool:
    """Whether the weights of a model of `FOUNDATION` are on this machine."""
    return _here(FOUNDATION[name]) is not None


def _of_folder(path: Path) -> Kind | None:
    """By what it holds; None of a compact model, and where there are no weights."""
    if (path / SEGMENTER).is_file():
        return "segmenter"
    if (path / SPECIALIST).is_file() or any(path.glob(f"*/{SPECIALIST}")):
        return "specialist"
    if (path / FILES[0]).is_file():
        return None
    stored = str(read_config(path).get("model_type", ""))
    if stored == DINO_TYPE:
        return "dinov3"
    if stored.startswith("sam"):
        return "sam" if stored == "sam" else "sam3"
    return "sam3" if weights_in(path) else None


def _of_repository(typed: str) -> FoundationModel | None:
    """The model that a repository of this name holds, if it is one of `FOUNDATION`."""
    return next((known for known in FOUNDATION.values() if known.hub == hub.parse(typed)[0]), None)


def _of_unknown(typed: str) -> Kind:
    """Of a repository that is none of `FOUNDATION`: by what was downloaded, else by its name."""
    here = hub.cached(*hub.parse(typed))
    if here is not None:
        return kind_of(here)
    return "dinov3" if "dinov3" in typed.lower() else "sam3"


def _names_dinov3(file: Path) -> bool:
    """Whether the names of its tensors are DINOv3's, in any layout; read without unpickling. False if unreadable."""
    try:
        if file.suffix.lower() == ".safetensors":
            with file.open("rb") as opened:
                names = opened.read(min(int.from_bytes(opened.read(8), "little"), _MOST_NAMES))
        else:
            with zipfile.ZipFile(file) as archive:
                inside = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(inside) as opened:
                    names = opened.read(_MOST_NAMES)
    except (OSError, StopIteration, zipfile.BadZipFile, NotImplementedError):
        return False
    return any(all(mark in names for mark in marks) for marks in _DINO_MARKS)


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
