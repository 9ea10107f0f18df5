"""DINOv3 from any layout its weights come in, every tensor in its place or not at all, and back to disk. Needs torch.

Layouts (see `names`): the official file, also as training exports it (`teacher`, `backbone.`, heads beside), which is
MedDINOv3's; timm's; and folders of transformers 4 and 5. What has no place is left out and named. Weights that we write
say in `lexitome.json` (in a file: under "lexitome") how pictures are to be normalised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DINOv3ViTConfig, DINOv3ViTModel
from transformers.initialization import no_init_weights

from lexitome.errors import InputError
from lexitome.models import hub
from lexitome.models.dinov3 import names as naming
from lexitome.models.dinov3.backbone import Dinov3
from lexitome.models.dinov3.conversion import KEY_BIAS, Converted, to_layout, to_ours
from lexitome.models.dinov3.presets import HEAD, SPECS, Spec, of_spec
from lexitome.models.foundation import DINO_LICENCE, DINO_TYPE, FOUNDATION, SINGLE, locate
from lexitome.models.reading import SIDECAR, Family, check_places, convert, hash_of, read
from lexitome.models.writing import check_place, replacing, write_json

GET = FOUNDATION["dinov3-b"].remedy
DINOV3 = Family("DINOv3", (DINO_TYPE,), GET, keys=("teacher", "model", "state_dict"))
IMAGENET, MEDDINOV3 = "imagenet", "hu_meddino"
"""Policies of `data.normalisation` that the released weights were trained with."""
NOT_STATED = "not stated"


@dataclass(frozen=True, eq=False)
class Loaded:
    """
    Args:
        net: in evaluation mode, without augmentation of positions and drop-path.
        intensity: name of the policy of `data.normalisation` that its pictures are normalised by.
        dropped: names in the checkpoint that have no place here: heads, and what is computed.
        made: parameters that the layout has no place for, here zeros. timm's has no mask token, so that its weights
            cannot go on with masked pretraining as they were.
        source: as the user typed it.
        files: that the weights lie in.
        about: all that was stored beside weights that we wrote.
    """

    net: Dinov3
    intensity: str
    dropped: tuple[str, ...]
    licence: str
    source: str
    files: tuple[Path, ...]
    made: tuple[str, ...]
    about: dict[str, Any]

    @cached_property
    def sha256(self) -> str:
        """Of the files. Computed when first asked for, since it takes seconds."""
        return hash_of(self.files)

    @property
    def note(self) -> str:
        """What a user should know of the loading, in one line; "" for nothing."""
        said = {"left out": naming.summary(self.dropped), "zero, since the file has none": ", ".join(self.made)}
        return "; ".join(f"{what}: {names}" for what, names in said.items() if names)


def load_dinov3(source: str | Path, *, dtype: torch.dtype = torch.float32) -> Loaded:
    """
    Args:
        source: a name of `foundation.FOUNDATION`, a file, a folder, or `hf:OWNER/NAME`.
        dtype: of the weights in memory. Those that are stored in it stay mapped to their file.

    Raises:
        InputError: the weights are missing, of another model, incomplete, damaged, not finite, or hold code.
    """
    path = _place(source)
    stored = read(path, DINOV3)
    config = _stored_config(stored.config, path) if stored.config else None
    try:
        converted = to_ours(stored.tensors)
        config = config or inferred_config(converted)
    except ValueError as error:
        raise InputError(path, str(error), GET) from error
    net = _filled(config, converted.tensors, dtype, path)
    of_meddino = _spec_of(config) == SPECS["meddinov3_b"]
    licence = FOUNDATION["meddinov3-b"].licence if of_meddino else DINO_LICENCE
    return Loaded(
        net,
        str(stored.about.get("intensity", MEDDINOV3 if of_meddino else IMAGENET)),
        converted.dropped,
        str(stored.about.get("licence", NOT_STATED)) if stored.about else licence,
        str(source),
        stored.files,
        converted.made,
        stored.about,
    )


def _place(source: str | Path) -> Path:
    typed = str(source)
    if typed in FOUNDATION and FOUNDATION[typed].kind != "dinov3":
        raise InputError(f"model {typed!r}", "is no DINOv3", f"Choose from {', '.join(_known())}.")
    if typed not in FOUNDATION and not Path(source).expanduser().exists() and not hub.is_named(typed):
        remedy = f"Choose from {', '.join(_known())}; or name a folder or file of weights, or hf:OWNER/NAME."
        raise InputError(typed, "there is no such file, folder or model", remedy)
    return locate(source, GET)


def _known() -> list[str]:
    return [name for name, model in FOUNDATION.items() if model.kind == "dinov3"]


def _stored_config(stored: dict[str, Any], path: Path) -> DINOv3ViTConfig:
    """Without what is random in training: configurations on the Hub have it switched on."""
    random = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
    try:
        return DINOv3ViTConfig.from_dict({**stored, **dict.fromkeys(random), "drop_path_rate": 0.0})
    except Exception as error:  # of transformers and huggingface_hub, of several kinds
        cause = f"has a configuration that cannot be used ({str(error).splitlines()[0][:160]})"
        raise InputError(path, cause, GET) from error


def inferred_config(converted: Converted) -> DINOv3ViTConfig:
    """Made of the sizes of tensors; heads and epsilon, which they do not tell, are those of the preset they fit, or
    else as in all that Meta released.

    MedDINOv3 differs from B by its epsilon alone, once B has no biases. timm has written such files of B; among
    official ones there is none, so that one of the official layout is MedDINOv3's.

    Raises:
        ValueError: tensors that tell sizes are missing, or have other axes.
    """
    tensors, found = converted.tensors, converted.found
    dim = _sides(tensors, "embeddings.cls_token", 3)[-1]
    first = "model.layer.0."
    hidden = _sides(tensors, f"{first}mlp.up_proj.weight", 2)[0]
    biased = f"{first}attention.q_proj.bias" in tensors
    known = [
        spec for spec in SPECS.values()
        if (spec.dim, spec.depth, spec.hidden, spec.gated) == (dim, found.depth, hidden, found.gated)
        and (spec.biased or found.layout == "original")
    ]  # fmt: skip
    like = next((spec for spec in known if spec.biased == biased), known[0] if known else SPECS["b"])
    head = converted.head_dim or (like.dim // like.heads if known else HEAD)
    spec = Spec(dim, found.depth, dim // head, hidden, found.gated, biased, like.eps)
    _, channels, _, patch = _sides(tensors, "embeddings.patch_embeddings.weight", 4)
    config = of_spec(spec, registers=_sides(tensors, naming.REGISTERS, 3)[1], patch=patch)
    config.num_channels = channels
    config.key_bias = any(name.endswith(KEY_BIAS) for name in tensors)
    config.proj_bias = f"{first}attention.o_proj.bias" in tensors
    config.mlp_bias = f"{first}mlp.up_proj.bias" in tensors
    return config


def _sides(tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"does not fit DINOv3: {name} is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != axes:
        raise ValueError(f"does not fit DINOv3: {name} has the shape {shape}, not {axes} axes")
    return shape


def _spec_of(config: DINOv3ViTConfig) -> Spec:
    return Spec(
        config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size,
        config.use_gated_mlp, config.query_bias, config.layer_norm_eps,
    )  # fmt: skip


def _filled(config: DINOv3ViTConfig, state: dict[str, Tensor], dtype: torch.dtype, path: Path) -> Dinov3:
    """A network that holds exactly the tensors of `state`, in evaluation mode."""
    try:
        with torch.device("meta"), no_init_weights():
            model = DINOv3ViTModel(config)
        model.rope_embeddings = type(model.rope_embeddings)(config)  # what it computes is not stored
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
        cause = f"has a configuration that cannot be used ({str(error).splitlines()[0][:160]})"
        raise InputError(path, cause, GET) from error
    check_places(model.state_dict(), state, path, DINOV3)
    convert(state, dtype, path)
    model.load_state_dict(state, assign=True)
    return Dinov3(model.eval()).eval()


def save_folder(net: Dinov3, folder: Path, *, intensity: str, about: Mapping[str, Any] | None = None) -> None:
    """Write a folder that transformers reads (`DINOv3ViTModel`), and `load_dinov3` too.

    Args:
        intensity: name of the policy of `data.normalisation` that its pictures are normalised by.
        about: anything else to be stored, JSON-able: licence, provenance.

    Raises:
        InputError: the folder holds something else, or cannot be written; an old one is as it was.
    """
    check_place(folder)
    state = {name: value.contiguous() for name, value in _values(net).items()}
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        save_file(state, temporary / SINGLE, metadata={"format": "pt"})
        write_json(temporary / "config.json", _config_json(net))
        write_json(temporary / SIDECAR, {**(about or {}), "intensity": intensity})


def save_teacher(
    net: Dinov3,
    path: Path,
    *,
    intensity: str,
    heads: Mapping[str, Tensor] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a file as official training exports it, which MedDINOv3's and other code reads, as `load_dinov3` does.

    Args:
        heads: as they are to be named beside `backbone.`, such as "dino_head.mlp.0.weight".

    Raises:
        InputError: it cannot be written; an old one is as it was.
    """
    config = net.config
    official = to_layout(_values(net), "original", config.hidden_size // config.num_attention_heads)
    teacher = {f"backbone.{name}": value for name, value in official.items()}
    teacher |= {name: value.detach().cpu() for name, value in (heads or {}).items()}
    described = {**(about or {}), "intensity": intensity}
    with replacing(path) as temporary:
        torch.save({"teacher": teacher, "config": _config_json(net), "lexitome": described}, temporary)


def _values(net: Dinov3) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in net.model.state_dict().items()}


def _config_json(net: Dinov3) -> dict[str, Any]:
    return {**json.loads(net.config.to_json_string(use_diff=False)), "architectures": ["DINOv3ViTModel"]}
