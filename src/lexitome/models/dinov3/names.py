"""The parameters of DINOv3 under the names of its official code, of timm, and of transformers 4 and 5. No torch here.

Ours are those of transformers 5. `table` has every name of a layout and reads the same in both directions. Checkpoints
put things in front of names: training `teacher.` and `backbone.` (MedDINOv3's released file has both, the first as a
key), parallel training and compilation their own; `recognise` finds out by where the class token is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from lexitome.errors import some

Layout = Literal["original", "timm", "transformers 4", "transformers 5"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MASK_TOKEN = "embeddings.mask_token"
REGISTERS = "embeddings.register_tokens"
PERIODS = "rope_embed.periods"
BIAS_MASK = "attn.qkv.bias_mask"
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|module)\.")
_BLOCKS: dict[Layout, str] = {
    "original": "blocks.", "timm": "blocks.", "transformers 4": "layer.", "transformers 5": "model.layer.",
}  # fmt: skip
_TEACHERS = ("teacher", "model_ema", "ema")
"""What comes first in the names of the network that training exports, where its student lies beside it."""
_LEFT = re.compile(rf"(dino_head|ibot_head|head|local_cls_norm)\..*|{re.escape(PERIODS)}|.*\.{re.escape(BIAS_MASK)}")
"""Has no place in ours: heads, the norm that the 7B model has for small crops; positions and masks are computed."""


@dataclass(frozen=True)
class Found:
    """
    Args:
        prefix: in front of all names of the network.
        depth: number of blocks.
        gated: the feed-forward part is SwiGLU.
    """

    layout: Layout
    prefix: str
    depth: int
    gated: bool

    @property
    def table(self) -> dict[str, tuple[str, ...]]:
        return table(self.layout, self.depth, self.gated)


def unwrapped(name: str) -> str:
    """A name without what parallel training and compilation put into it."""
    return _WRAPPERS.sub("", name)


def recognise(names: Iterable[str]) -> Found:
    """What network these names (`unwrapped`) belong to; of a student and a teacher the teacher.

    Raises:
        ValueError: they are not DINOv3's, or of several networks of which none is called a teacher.
    """
    names = list(names)
    prefix = _prefix(names)
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    layout = _layout(inside)
    if layout is None:
        raise ValueError(f"holds another model than DINOv3: {some(inside, 3)}")
    places = [re.match(rf"{re.escape(_BLOCKS[layout])}(\d+)\.", name) for name in inside]
    depth = 1 + max(int(place[1]) for place in places if place)
    gated = any(re.search(r"\.mlp\.(w1|fc1_g|gate_proj)\.", name) for name in inside)
    return Found(layout, prefix, depth, gated)


def _prefix(names: list[str]) -> str:
    found = {
        name[: -len(end[1])] for name in names if (end := re.search(r"(?:^|\.)((?:embeddings\.)?cls_token)$", name))
    }
    for teacher in _TEACHERS:
        if chosen := [prefix for prefix in found if prefix.startswith(f"{teacher}.")]:
            found = set(chosen)
            break
    if not found:
        raise ValueError(f"holds another model than DINOv3: there is no class token among {some(names, 3)}")
    if len(found) > 1:
        raise ValueError(f"holds several networks ({some(found)}), and none is called teacher")
    return found.pop()


def _layout(names: set[str]) -> Layout | None:
    marks: dict[Layout, str] = {
        "original": "blocks.0.ls1.gamma", "timm": "blocks.0.gamma_1",
        "transformers 4": "layer.0.layer_scale1.lambda1", "transformers 5": "model.layer.0.layer_scale1.lambda1",
    }  # fmt: skip
    return next((layout for layout, mark in marks.items() if mark in names), None)


def table(layout: Layout, depth: int, gated: bool) -> dict[str, tuple[str, ...]]:
    """Every name of a layout, and the names of ours that hold its values.

    Three of ours (queries, keys, values, in that order) where the layout has one tensor, along its first axis. Biases
    are all listed, also those that a network may lack.
    """
    outside, inside = (_timm if layout == "timm" else _original)(gated)
    if layout.startswith("transformers"):
        outside, inside = _itself(outside), _itself(inside)
    before, ours_before = _BLOCKS[layout], _BLOCKS["transformers 5"]
    return outside | {
        f"{before}{block}.{name}": tuple(f"{ours_before}{block}.{each}" for each in ours)
        for block in range(depth)
        for name, ours in inside.items()
    }


Part = dict[str, tuple[str, ...]]


def _itself(part: Part) -> Part:
    return {name: (name,) for names in part.values() for name in names}


def _original(gated: bool) -> tuple[Part, Part]:
    """Names outside of blocks and inside of one."""
    outside = _shared_outside() | {"storage_tokens": (REGISTERS,), "mask_token": (MASK_TOKEN,)}
    inside = _shared_inside() | {"attn.qkv.bias": _three("bias")}
    inside |= {f"ls{n}.gamma": (f"layer_scale{n}.lambda1",) for n in (1, 2)}
    return outside, inside | _feed_forward(("w1", "w2", "w3") if gated else ("fc1", "fc2"))


def _timm(gated: bool) -> tuple[Part, Part]:
    outside = _shared_outside() | {"reg_token": (REGISTERS,)}
    inside = _shared_inside() | {f"attn.{n}_bias": (f"attention.{n}_proj.bias",) for n in ("q", "v")}
    inside |= {f"gamma_{n}": (f"layer_scale{n}.lambda1",) for n in (1, 2)}
    return outside, inside | _feed_forward(("fc1_g", "fc1_x", "fc2") if gated else ("fc1", "fc2"))


def _shared_outside() -> Part:
    pairs = {"patch_embed.proj": "embeddings.patch_embeddings", "norm": "norm"}
    return {"cls_token": ("embeddings.cls_token",)} | _with_bias(pairs)


def _shared_inside() -> Part:
    pairs = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.o_proj"}
    return {"attn.qkv.weight": _three("weight")} | _with_bias(pairs)


def _feed_forward(theirs: tuple[str, ...]) -> Part:
    ours = ("gate_proj", "up_proj", "down_proj")[-len(theirs) :]
    return _with_bias({f"mlp.{name}": f"mlp.{our}" for name, our in zip(theirs, ours, strict=True)})


def _with_bias(pairs: dict[str, str]) -> Part:
    return {f"{theirs}.{kind}": (f"{ours}.{kind}",) for theirs, ours in pairs.items() for kind in ("weight", "bias")}


def _three(kind: str) -> tuple[str, ...]:
    return tuple(f"attention.{name}_proj.{kind}" for name in "qkv")


def may_be_left(name: str) -> bool:
    """Whether a network loses nothing of its features without this tensor of a checkpoint, named without prefix."""
    return _LEFT.fullmatch(name) is not None


def summary(dropped: Iterable[str]) -> str:
    """Names by what they belong to: "dino_head (7), ibot_head (7), rope_embed.periods"."""
    groups: dict[str, int] = {}
    for name in dropped:
        inner = next((end for end in (PERIODS, BIAS_MASK) if name.endswith(end)), None)
        parts = name.split(".")
        group = inner or ".".join(parts[: 2 if parts[0] in _TEACHERS else 1])
        groups[group] = groups.get(group, 0) + 1
    return ", ".join(f"{group} ({count})" if count > 1 else group for group, count in sorted(groups.items()))
