"""What the optimiser does to which parameter: rates, layer-wise decay, weight decay, freezing, schedules, averaging.

Everything selects parameters by the names of `model.named_parameters()` with shell globs (`*` crosses dots). A glob
that selects nothing is an error: an inert setting is worse than a wrong one, since nobody sees it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from lexitome.errors import InputError

SAM3_TRUNKS = {
    "transformers": (
        "vision_encoder.backbone.layers.{i}.",
        ("*vision_encoder.backbone.embeddings.patch_embeddings.*", "*vision_encoder.backbone.layer_norm.*"),
    ),
    "official": (
        "backbone.vision_backbone.trunk.blocks.{i}.",
        ("*backbone.vision_backbone.trunk.patch_embed.*", "*backbone.vision_backbone.trunk.ln_pre.*"),
    ),
}
"""Blocks and stem of SAM3's image encoder in the two published layouts of its weights."""


@dataclass(frozen=True)
class LayerDecay:
    """Layer-wise decay of the learning rate: a block of id `k` learns at ``rate ** max(0, depth - k)`` of its rate.

    Meta's rule (sam3 `layer_decay_param_modifier`): what `stem_globs` name has id 0, block i has id i + 1, and `depth`
    is the number of blocks + 1, so that the last block has `rate` itself; everything else (position embedding, neck,
    heads) keeps factor 1. A smaller `depth` leaves the upper blocks at factor 1: the Medical SAM3 paper writes L = 12
    for 32 blocks, which gives its patch embedding 0.85 ** 12 = 0.142 instead of 0.85 ** 33 = 0.0047.

    Attributes:
        rate: in (0, 1].
        block_pattern: beginnings of the names of blocks from input to output, ``{i}`` standing for a number. A pattern
            is found anywhere at the start of a name's part, but below one parent only. Several are numbered one after
            the other, as are several ``{i}``: ``("stages.{i}.blocks.{i}.",)`` or ``("layer1.", "layer2.")`` for CNNs.
        stem_globs: globs of the parameters below the first block.
        depth: the paper's L; None = number of blocks found + 1.
    """

    rate: float
    block_pattern: tuple[str, ...] = ("blocks.{i}.",)
    stem_globs: tuple[str, ...] = ("*patch_embed.*",)
    depth: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise InputError("optim.layer_decay.rate", f"{self.rate} is not in (0, 1]", "Usual values: 0.65 to 1.")
        if self.depth is not None and self.depth < 1:
            raise InputError("optim.layer_decay.depth", f"{self.depth} is below 1", "None counts the blocks.")

    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """Factor of each parameter name.

        Raises:
            InputError: a pattern or glob finds nothing, or finds blocks of two networks.
        """
        blocks = self._blocks(names)
        rank = {key: number for number, key in enumerate(sorted(set(blocks.values())), start=1)}
        ids = {name: rank[key] for name, key in blocks.items()}
        ids |= dict.fromkeys(selected(self.stem_globs, names, "optim.layer_decay.stem_globs"), 0)
        depth = len(rank) + 1 if self.depth is None else self.depth
        return {name: self.rate ** max(0, depth - ids[name]) if name in ids else 1.0 for name in names}

    def _blocks(self, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Block of each name as (index of its pattern, numbers in the name); names outside of blocks are left out."""
        found: dict[str, tuple[int, ...]] = {}
        for place, pattern in enumerate(self.block_pattern):
            body = r"(\d+)".join(map(re.escape, pattern.rstrip(".").split("{i}")))
            compiled = re.compile(rf"(?:^|(?<=\.)){body}(?=\.)")
            matches = {name: match for name in names if (match := compiled.search(name))}
            parents = sorted({name[: match.start()] for name, match in matches.items()})
            if len(parents) != 1:
                cause = f"{pattern!r} finds " + (f"blocks below {' and '.join(parents[:3])}" if parents else "no block")
                remedy = "Write more of the name." if parents else near_misses(pattern, names)
                raise InputError("optim.layer_decay.block_pattern", cause, remedy)
            for name, match in matches.items():
                found.setdefault(name, (place, *map(int, match.groups())))
        return found


def sam3_decay(layout: Literal["transformers", "official"] = "transformers") -> LayerDecay:
    """Meta's fine-tuning recipe of SAM3: 0.9 on the image trunk alone."""
    blocks, stem = SAM3_TRUNKS[layout]
    return LayerDecay(0.9, (blocks,), stem)


def medical_sam3_decay(
    layout: Literal["transformers", "official"] = "transformers", depth: int | None = None
) -> LayerDecay:
    """Medical SAM3: 0.85 by Meta's rule; `depth=12` takes the paper's L = 12 at its word (see `LayerDecay`)."""
    blocks, stem = SAM3_TRUNKS[layout]
    return LayerDecay(0.85, (blocks,), stem, depth)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        lr: base learning rate of what no entry of `groups` names.
        groups: (glob, base learning rate); the first match wins.
        weight_decay: of weight matrices and kernels; 0 for biases, norms and all with at most one axis.
        weight_decay_end: what it has become in the last step, along half a cosine; None = it stays.
        no_decay: globs of further parameters without weight decay.
        freeze: globs, see `apply_freeze`.
        held: (glob, steps): parameters whose rate is 0 in the first so many steps, such as the last layer of DINO's
            head. They get gradients and moments meanwhile.
        warmup, cooldown: steps of linear rise at the start and linear fall to 0 at the end.
        timescale: steps; "inverse_sqrt" falls as ``sqrt(timescale / (timescale + steps since warm-up))``.
        floor: factor at which "cosine" ends.
    """

    lr: float
    groups: tuple[tuple[str, float], ...] = ()
    weight_decay: float = 0.02
    weight_decay_end: float | None = None
    no_decay: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: LayerDecay | None = None
    freeze: tuple[str, ...] = ()
    held: tuple[tuple[str, int], ...] = ()
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    warmup: int = 0
    timescale: int = 1
    cooldown: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        allowed = {
            "lr": self.lr > 0,
            "groups": all(lr > 0 for _, lr in self.groups),
            "weight_decay": self.weight_decay >= 0,
            "weight_decay_end": self.weight_decay_end is None or self.weight_decay_end >= 0,
            "held": all(steps >= 0 for _, steps in self.held),
            "betas": all(0 <= beta < 1 for beta in self.betas),
            "schedule": self.schedule in ("cosine", "inverse_sqrt", "constant"),
            "warmup": self.warmup >= 0,
            "timescale": self.timescale > 0,
            "cooldown": self.cooldown >= 0,
            "floor": 0 <= self.floor <= 1,
        }
        for name, fine in allowed.items():
            if not fine:
                remedy = "See the attributes of OptimConfig; to keep parameters as they are, name them in freeze."
                raise InputError(f"optim.{name}", f"{getattr(self, name)!r} is out of range", remedy)


def near_misses(wanted: str, names: Iterable[str]) -> str:
    """A sentence with up to three names or beginnings of names that look like the glob or pattern `wanted`."""
    known: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        known |= dict.fromkeys([".".join(parts[:n]) + ".*" for n in range(1, len(parts))] + [name])
    close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    top = dict.fromkeys(name.split(".")[0] for name in known)
    return f"Near: {', '.join(close)}." if close else f"The model has: {', '.join(list(top)[:12])}."


def selected(globs: Sequence[str], names: Sequence[str], setting: str) -> set[str]:
    """Names that any of `globs` matches; each has to match one."""
    chosen: set[str] = set()
    for glob in globs:
        hits = {name for name in names if fnmatchcase(name, glob)}
        if not hits:
            raise InputError(setting, f"{glob!r} matches nothing in the model", near_misses(glob, names))
        chosen |= hits
    return chosen


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


def apply_freeze(model: nn.Module, globs: Sequence[str]) -> None:
    """Freeze the parameters that `globs` match, so that nothing in them changes: no gradient, and modules that hold no
    other parameters stay in evaluation mode (no dropout, no update of batch-norm statistics) through `model.train()`.

    Call it before the model is wrapped for several processes, which would change the names; twice does no harm.

    Raises:
        InputError: a glob matches nothing.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    frozen = {id(parameters[name]) for name in selected(globs, list(parameters), "optim.freeze")}
    for parameter in parameters.values():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)
    for name, module in model.named_modules():
        inside = [id(parameter) in frozen for parameter in module.parameters()]
        if all(inside) and (inside or any(fnmatchcase(name, glob) for glob in globs)):
            # A partial of a plain function survives copy.deepcopy with the copy as its argument; a closure would not.
            module.train = partial(_stay_in_eval, module)
            module.eval()


def param_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters by rate and weight decay: each dict has "params", "names", "base_lr", "lr", "weight_decay",
    and what `set_rates` needs: "decays" and "held".

    Raises:
        InputError: a glob matches nothing, or no parameter is trainable.
    """
    parameters = dict(model.named_parameters())
    names = list(parameters)
    for setting, globs in (("optim.groups", config.groups), ("optim.held", config.held)):
        for glob, _ in globs:
            selected([glob], names, setting)
    undecayed = selected(config.no_decay, names, "optim.no_decay") | _biases_and_norms(model)
    factors = config.layer_decay.factors(names) if config.layer_decay else dict.fromkeys(names, 1.0)
    groups: dict[tuple[float, bool, int], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        lr = next((lr for glob, lr in config.groups if fnmatchcase(name, glob)), config.lr) * factors[name]
        held = next((steps for glob, steps in config.held if fnmatchcase(name, glob)), 0)
        decays = name not in undecayed
        decay = config.weight_decay if decays else 0.0
        fresh: dict[str, Any] = {"params": [], "names": [], "base_lr": lr, "lr": lr, "weight_decay": decay,
                                 "decays": decays, "held": held}  # fmt: skip
        group = groups.setdefault((lr, decays, held), fresh)
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise InputError("optim.freeze", "no parameter is left to train", "Freeze less.")
    return list(groups.values())


def _biases_and_norms(model: nn.Module) -> set[str]:
    found = {n for n, p in model.named_parameters() if p.ndim <= 1 or "bias" in n.rpartition(".")[2]}
    for prefix, module in model.named_modules():  # the norms that may have several axes
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            found |= {f"{prefix}.{n}" if prefix else n for n, _ in module.named_parameters()}
    return found


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `param_groups`, after `apply_freeze`."""
    apply_freeze(model, config.freeze)
    return torch.optim.AdamW(param_groups(model, config), lr=config.lr, betas=config.betas, fused=True)


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Factor on every base rate in step `step`, counted from 0, of `steps`.

    "inverse_sqrt" is Meta's rule for SAM3 (`InverseSquareRootParamScheduler`), whose first step has rate 0 when there
    is a warm-up; the others begin at 1 / warmup.
    """
    if config.schedule == "inverse_sqrt":
        factor = math.sqrt(config.timescale / (config.timescale + max(0, step - config.warmup)))
        risen = step
    else:
        progress = max(0, step - config.warmup) / max(1, steps - config.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        factor = config.floor + (1 - config.floor) * cosine if config.schedule == "cosine" else 1.0
        risen = step + 1
    if risen < config.warmup:
        factor *= risen / config.warmup
    if steps - step < config.cooldown:
        factor *= max(0, steps - step) / config.cooldown
    return factor


def decay_at(step: int, steps: int, config: OptimConfig) -> float:
    """Weight decay in step `step`, counted from 0, of `steps`."""
    if config.weight_decay_end is None:
        return config.weight_decay
    left = 0.5 * (1 + math.cos(math.pi * step / max(1, steps - 1)))
    return config.weight_decay_end + (config.weight_decay - config.weight_decay_end) * left


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> float:
    """Give every group the learning rate and weight decay of step `step`, counted from 0; returns `lr_factor`."""
    factor, decay = lr_factor(step, steps, config), decay_at(step, steps, config)
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if step < group["held"] else group["base_lr"] * factor
        group["weight_decay"] = decay if group["decays"] else 0.0
    return factor


class Average:
    """Exponential moving average of a model's state; works on shards (DTensor) as on plain tensors.

    Floating parameters and buffers are averaged, in float32 at least, other buffers copied. Parameters that are frozen
    now take no memory: they are the model's own tensors. Make it after the model has been moved and sharded.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """`decay` in [0, 1]: share of the average that one update keeps, after the warm-up."""
        self.decay = decay
        frozen = {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        state = _tensors(model)
        self._own = [name for name in state if name not in frozen]
        self._values = {n: value if n in frozen else _at_least_float32(value).clone() for n, value in state.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after step `step`, counted from 0; the first steps weigh ``(1 + step) / (10 + step)``
        so that the random start is soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = _tensors(model)
        alike: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor]]] = {}
        for name in self._own:
            mean, value = self._values[name], state[name]
            if not mean.is_floating_point():
                mean.copy_(value)
                continue
            # One fused call per kind: shards and plain tensors (buffers beside sharded parameters) do not mix.
            kind = (type(mean), mean.dtype, mean.device, getattr(mean, "device_mesh", None))
            means, values = alike.setdefault(kind, ([], []))
            means.append(mean)
            values.append(value.to(mean.dtype))
        for means, values in alike.values():
            get_ema_multi_avg_fn(decay)(means, values, 0)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged state under the model's own names, frozen parameters included. Not a copy."""
        return dict(self._values)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state` in.

        Raises:
            ValueError: names or shapes differ from the model's.
        """
        if state.keys() != self._values.keys():
            odd = sorted(state.keys() ^ self._values.keys())
            raise ValueError(f"the average is of another model: {len(odd)} names differ, such as {odd[0]}")
        for name, value in self._values.items():
            if value.shape != state[name].shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(state[name].shape)}")
            value.copy_(state[name])

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` has the averaged state; afterwards its own again, whatever happened."""
        state = _tensors(model)
        before = {name: state[name].clone() for name in self._own}
        try:
            _copy_into(model, {name: self._values[name] for name in self._own})
            yield
        finally:
            _copy_into(model, before)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state that is tensors: modules may add other extra state."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _at_least_float32(value: Tensor) -> Tensor:
    """In bfloat16 an update of 1 - decay = 0.002 would be rounded away."""
    return value.float() if value.is_floating_point() and value.element_size() < 4 else value


@torch.no_grad()
def _copy_into(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    state = _tensors(model)
    for name, value in values.items():
        state[name].copy_(value)


def checkpoint_activations(model: nn.Module, globs: Sequence[str]) -> list[str]:
    """Forget the activations inside the modules that `globs` match and compute them again in the backward pass: less
    memory for about a third more time. Of nested matches only the outermost is wrapped; names and state stay the same.

    Returns:
        Names of the wrapped modules.

    Raises:
        InputError: a glob matches no module that computes something (lists of modules do not).
    """
    modules = {n: m for n, m in model.named_modules() if n and type(m).forward is not nn.Module.forward}
    matched = selected(globs, list(modules), "activation checkpointing")
    inner = {n for n in matched if any(n.startswith(f"{other}.") for other in matched)}
    chosen = [name for name in modules if name in matched - inner]
    for name in chosen:
        forward = modules[name].forward
        if not (isinstance(forward, partial) and forward.func is checkpoint):
            modules[name].forward = partial(checkpoint, forward, use_reentrant=False)
    return chosen
