"""What this computer has for a run: memory that is free, cores, a GPU. Read, not guessed; tests give other numbers."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from lexitome.training.engine import Precision
from lexitome.training.parallel import assemble

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
UNKNOWN_SHARE = 0.5
"""Of all memory, taken for free where the system tells only how much there is."""


@dataclass(frozen=True)
class Machine:
    """What one process of a run may use.

    Attributes:
        device: that the model is trained on: "cpu", "cuda", "mps".
        memory: bytes that are free on it for this process; None if nothing tells.
        cores: of the whole computer, as far as this process may use them.
        ranks: processes of the run that share the computer.
        precision: what the device computes; None for a CPU, where only the clock tells which is quicker.
        threads: that OMP_NUM_THREADS asks for, if it is the user who asks.
    """

    device: str
    memory: int | None
    cores: int
    ranks: int = 1
    precision: Precision | None = None
    threads: int | None = None


def this_machine() -> Machine:
    """The computer that this process runs on, as the processes of this launch share it."""
    device = assemble().device
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    memory = free_memory()
    precision: Precision | None = None
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0]
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    elif device.type != "cpu":
        precision = "fp32"
    return Machine(
        device.type,
        memory if device.type == "cuda" or memory is None else memory // ranks,
        usable_cores(),
        ranks,
        precision,
        int(asked) if asked.isdigit() and int(asked) and ranks == 1 else None,  # torchrun sets it for its ranks
    )


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: of its affinity, and of the share that a container has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(cores, 1)


def free_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Bytes that can be taken without swapping: what the kernel calls available, or what a container has left."""
    available = _field(_text(proc / "meminfo"), "MemAvailable:")
    free = None if available is None else 1024 * available
    if free is None:
        free = _free_elsewhere()
    left = _left_in_container(cgroup)
    return left if free is None else free if left is None else min(free, left)


def _left_in_container(cgroup: Path) -> int | None:
    """Limit less use; pages of files that were read can be given back. Control groups of version 2, then 1."""
    for limit, used, statistics, field in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        most, now = _text(cgroup / limit), _text(cgroup / used)
        if most.isdigit() and now.isdigit():
            return max(int(most) - int(now) + (_field(_text(cgroup / statistics), field) or 0), 0)
    return None


def _free_elsewhere() -> int | None:
    """Where there is no /proc: Windows tells what is free, other systems how much there is."""
    if sys.platform == "win32":
        status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its own size, all memory, what is free of it, ...
        return int(status[2]) if ctypes.windll.kernel32.GlobalMemoryStatusEx(status) else None
    try:
        return int(UNKNOWN_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _field(text: str, name: str) -> int | None:
    """The number after `name` at the beginning of a line."""
    words = next((line.split() for line in text.splitlines() if line.split()[:1] == [name]), [])
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else None
