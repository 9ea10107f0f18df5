"""One training function for one device, copies of the model on several (DDP) or slices of it on several (FSDP2).

accelerate finds the device, joins the ranks that `torchrun` or `accelerate launch` started, wraps the model for DDP and
clips. FSDP2 is asked of torch itself: accelerate 1.15 looks at its FSDP plugin only where there are accelerators
(`AcceleratorState.__init__`), and a path that the tests cannot run on a CPU would not be the path that was tested.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
    convert_outputs_to_fp32,
    gather_object,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _NormBase

from lexitome.errors import InputError
from lexitome.models.attention import ShortAttentionInFloat32

Strategy = Literal["single", "ddp", "fsdp2"]
Loss = Callable[[nn.Module, Any, Tensor], dict[str, Tensor]]


def strategy_of_environment() -> Strategy:
    """One process, unless a launcher started several; those slice the model if `accelerate launch` was told to."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return "single"
    return "fsdp2" if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" else "ddp"


class Objective(nn.Module):
    """The loss as a module: DDP then sees every way in which a task uses the model (methods besides `forward`, several
    calls) and exactly the outputs that the gradient comes from."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any, totals: Tensor) -> dict[str, Tensor]:
        return self._loss(self.model, batch, totals)


@dataclass(frozen=True)
class Team:
    """The processes that train together; rank 0 alone writes."""

    accelerator: Accelerator
    strategy: Strategy

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def size(self) -> int:
        return self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def place(self, model: nn.Module) -> None:
        """Move the model to the device, give every rank the weights of rank 0 and, under FSDP2, its slice of them."""
        model.to(self.device)
        if self.size > 1:
            for value in model.state_dict().values():
                sent = value.contiguous()
                torch.distributed.broadcast(sent, src=0)
                value.copy_(sent)
        if self.strategy == "fsdp2":
            _shard(model, self.device.type, self.size)

    def objective(self, model: nn.Module, loss: Loss) -> nn.Module:
        """Called with (batch, totals) it returns the loss terms; its backward pass averages gradients over ranks."""
        objective = Objective(model, loss)
        return self.accelerator.prepare_model(objective) if self.strategy == "ddp" else objective

    def total(self, values: Tensor) -> Tensor:
        """Elementwise sum over ranks."""
        return self.accelerator.reduce(values, "sum")

    def gathered(self, terms: dict[str, float], flag: bool) -> tuple[dict[str, float], bool]:
        """Sums over ranks of numbers that not every rank has, and whether any rank has raised the flag."""
        sums: dict[str, float] = {}
        everyone = gather_object([(terms, flag)])
        for name, value in (item for each, _ in everyone for item in each.items()):
            sums[name] = sums.get(name, 0.0) + value
        return sums, any(raised for _, raised in everyone)

    def settle_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Give parameters that a step did not use the same gradient whatever the strategy: autograd leaves None, FSDP2
        0, and AdamW makes a difference between them. A parameter begins to learn (moments, weight decay) with its first
        gradient other than 0, so that what is never used keeps its values; from then on a missing gradient is 0."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        fresh = [p for p in parameters if p not in optimizer.state]
        if fresh:
            nothing = torch.zeros((), dtype=torch.bool, device=self.device)
            used = torch.stack([nothing if p.grad is None else local(p.grad).any() for p in fresh]).float()
            for parameter, found in zip(fresh, self.total(used).tolist(), strict=True):
                if not found:
                    parameter.grad = None
        for parameter in parameters:
            if parameter.grad is None and parameter in optimizer.state:
                parameter.grad = torch.zeros_like(parameter)

    def agreed(self, value: Any) -> Any:
        """The value that rank 0 has."""
        return broadcast_object_list([value])[0] if self.size > 1 else value

    def on_main(self, work: Callable[[], None]) -> None:
        """Do `work` on rank 0. An InputError of it is raised on every rank: none is left waiting for another."""
        failed: InputError | None = None
        if self.rank == 0:
            try:
                work()
            except InputError as error:
                failed = error
        reason = self.agreed((failed.path, failed.cause, failed.remedy) if failed else None)
        if reason:
            raise InputError(*reason) from failed

    def average_statistics(self, model: nn.Module) -> None:
        """Batch norm counts on each rank what that rank saw; keep the mean over ranks."""
        if self.size > 1:
            for module in model.modules():
                if isinstance(module, _NormBase) and module.training and module.track_running_stats:
                    for statistic in (module.running_mean, module.running_var):
                        assert statistic is not None
                        statistic.copy_(self.total(statistic) / self.size)


def local(tensor: Tensor) -> Tensor:
    """This rank's slice of a sliced tensor, any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assemble(strategy: Strategy | None = None) -> Team:
    """Join the processes of this launch; `strategy` None is that of the environment.

    Raises:
        InputError: the strategy does not fit the number of processes.
    """
    wanted = strategy or strategy_of_environment()
    if (wanted == "single") != (int(os.environ.get("WORLD_SIZE", "1")) == 1):
        cause = f"{wanted!r} does not fit WORLD_SIZE={os.environ.get('WORLD_SIZE', '1')}"
        raise InputError(
            "strategy", cause, "Start several processes with torchrun --nproc-per-node N, or leave it out."
        )
    # Prompts come and go between batches and with them the parameters in use.
    handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    # Autocast is not accelerate's here because it would cover the loss too, where bf16 costs accuracy.
    several_on_cpu = wanted != "single" and not torch.cuda.is_available()
    accelerator = Accelerator(cpu=several_on_cpu, mixed_precision="no", kwargs_handlers=[handler])
    return Team(accelerator, wanted)


def leave(code: int) -> NoReturn:
    """End this process, one of several, with an exit code and without tearing the interpreter down: threads of gloo
    that still hold tensors then (destroyed group or not) abort the process now and then, its work done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def forward_in_bf16(model: nn.Module, device: torch.device, enabled: bool) -> Iterator[None]:
    """Inside, the model's `forward` runs under bf16 autocast and its outputs are turned into float32; weights, the loss
    and other methods of the model are as they were."""
    if not enabled:
        yield
        return
    before = model.__dict__.get("forward")
    cast = torch.autocast(device.type, torch.bfloat16)(model.forward)
    model.forward = convert_outputs_to_fp32(cast)
    try:
        with ShortAttentionInFloat32() if device.type == "cpu" else nullcontext():
            yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def _shard(model: nn.Module, device: str, size: int) -> None:
    """Slice the model over all ranks. The entries of every list of modules (blocks of a transformer) are gathered one
    at a time, the rest at the start of `forward`: a task has to call the model, not other methods of it, and no block
    may be skipped for some batches, or the ranks would wait for each other."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # channels_last cannot be sliced
    mesh = init_device_mesh(device, (size,))
    blocks = [block for each in model.modules() if isinstance(each, nn.ModuleList) for block in each]
    for block in reversed(blocks):  # modules() goes from the outside in, fully_shard has to go from the inside out
        if type(block).forward is not nn.Module.forward and any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    sliced = fully_shard(model, mesh=mesh)
    if not hasattr(sliced, "set_reduce_scatter_unused_params"):
        cause = f"torch {torch.__version__} cannot slice models of which batches use different parameters"
        raise InputError("strategy", cause, "Update torch (2.14 can), or use ddp.")
    sliced.set_reduce_scatter_unused_params(True)
