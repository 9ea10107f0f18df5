"""Low-rank adapters (Hu et al. 2021, LoRA) on chosen parts of SAM3, by peft: added, stored alone, merged.

An adapter is stored in peft's own layout: `adapter_model.safetensors` and `adapter_config.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lexitome.errors import InputError

Part = Literal["vision", "text", "geometry", "fusion", "decoder"]
_MODULES: dict[Part, str] = {
    "vision": r"vision_encoder\.backbone\.layers",
    "text": r"text_encoder\.text_model\.encoder\.layers|text_encoder\.encoder\.layers",
    "geometry": r"geometry_encoder\.layers",
    "fusion": r"detr_encoder\.layers",
    "decoder": r"detr_decoder\.layers",
}
_LINEAR = r"(?:[qkvo]_proj|out_proj|fc1|fc2)"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_EXTRA = "Type: pip install lexitome[train]"


@dataclass(frozen=True)
class Lora:
    """Adapters on every linear layer of the transformers in `parts`; the defaults are those of MedSAM3's release."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    parts: tuple[Part, ...] = ("vision", "text", "geometry", "fusion", "decoder")

    def __post_init__(self) -> None:
        for name, fine in (("rank", self.rank > 0), ("alpha", self.alpha > 0), ("dropout", 0 <= self.dropout < 1)):
            if not fine:
                raise InputError(f"lora.{name}", f"{getattr(self, name)!r} is out of range", "See Lora.")
        if not self.parts or set(self.parts) - set(get_args(Part)):
            cause = f"{', '.join(self.parts) or 'nothing'} cannot be adapted"
            raise InputError("lora.parts", cause, f"Choose from {', '.join(get_args(Part))}.")


def add(model: nn.Module, lora: Lora) -> None:
    """Add adapters that change nothing yet; all other parameters are frozen.

    Args:
        model: transformers' `Sam3Model`.

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("lora", "needs peft", _EXTRA) from error
    modules = "|".join(_MODULES[part] for part in lora.parts)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,  # type: ignore[arg-type]
        target_modules=rf"(?:{modules})\.\d+\.(?:.*\.)?{_LINEAR}",
    )  # fmt: skip
    inject_adapter_in_model(config, model)


def save(model: nn.Module, folder: Path) -> None:
    """Write the adapters of a model into a folder that is there."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" would look for them on the net
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / WEIGHTS)
    model.peft_config["default"].save_pretrained(str(folder))  # type: ignore[index, union-attr]


def load(model: nn.Module, folder: Path) -> None:
    """Add the adapters that `save` wrote.

    Raises:
        InputError: peft is not installed, or the files are missing, damaged or of another model.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    except ImportError as error:
        raise InputError(folder, "needs peft", _EXTRA) from error
    try:
        state = load_file(folder / WEIGHTS)
        config = LoraConfig.from_pretrained(str(folder))
        inject_adapter_in_model(config, model)
    except (OSError, SafetensorError, ValueError) as error:
        cause = f"holds no adapter of this model ({str(error).splitlines()[0]})"
        raise InputError(folder, cause, "Name the folder that training wrote.") from error
    left: Any = set_peft_model_state_dict(model, state)
    wrong = [name for name in left.missing_keys if "lora_" in name]
    if wrong:
        raise InputError(folder, f"lacks {len(wrong)} tensors, such as {wrong[0]}", "Name another folder.")


def merge(model: nn.Module) -> None:
    """Add each adapter to the weights it adapts and take it away: the same answers without peft."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
    del model.peft_config
