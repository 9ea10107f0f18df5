"""What a training step on a CPU pays for attention: torch's kernel in bfloat16, and as the engine runs it.

    python benchmarks/attention.py [--keys 25 144 ...] [--repeats 9]

Forward and backward of `scaled_dot_product_attention` under autocast, for so many keys and queries, 16 pictures and 8
heads of 32 channels: as torch does it, and inside `training.parallel.forward_in_bf16`, which computes attention to at
most LONG_ATTENTION keys in float32 and rounds. Medians of runs that take turns; "error" is the largest difference of
the result from float32 throughout, in units of its largest value. Results go to benchmarks/results/attention.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from provenance import RESULTS, Entry, origin, rounded, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.training.parallel import LONG_ATTENTION, forward_in_bf16

PACKAGES = ("torch",)
PICTURES, HEADS, CHANNELS = 16, 8, 32
KEYS = [10, 25, 37, 77, 145, 197, 257, 401, 512, 577, 785, 1025]


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


def measure(keys: int, repeats: int) -> Entry:
    """Seconds of one forward and one backward pass of both ways."""
    generator = torch.Generator().manual_seed(keys)
    shape = (PICTURES, HEADS, keys, CHANNELS)
    given = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]
    exact = Attention()(*given).detach()
    seconds: dict[str, list[float]] = {"torch": [], "engine": []}
    error: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for way in seconds if repeat % 2 == 0 else reversed(seconds):
            net = Attention()
            ours = forward_in_bf16(net, torch.device("cpu"), True)
            halves = [each.detach().bfloat16().requires_grad_() for each in given]
            with ours if way == "engine" else nullcontext(), torch.autocast("cpu", torch.bfloat16):
                began = time.perf_counter()
                seen = net(*halves)
                seen.sum().backward()
                spent = time.perf_counter() - began
            if repeat:  # the first one warms up
                seconds[way].append(spent)
            error[way] = float((seen.detach().float() - exact).abs().max() / exact.abs().max())
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    return {
        "keys": keys, "seconds": medians, "times": medians["torch"] / medians["engine"], "error": error,
        "in_float32": keys <= LONG_ATTENTION,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keys", type=int, nargs="+", default=[10, 25, 37, 77, 145, 197, 257, 401, 512, 577, 785, 1025]
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "attention.json")
    typed = parser.parse_args()
    rows = []
    for keys in typed.keys:
        rows.append(row := measure(keys, typed.repeats))
        way = "float32, rounded" if row["in_float32"] else "bfloat16 as it is"
        torch_ms, ours_ms = (1000 * row["seconds"][each] for each in ("torch", "engine"))
        print(
            f"{keys:5d} keys: torch {torch_ms:.1f} ms, here {ours_ms:.1f} ms ({row['times']:.2f} x, {way})", flush=True
        )
    about = origin(PACKAGES, [], seed=0, threads=torch.get_num_threads())
    write_json(typed.out, rounded({**about, "long_attention": LONG_ATTENTION, "rows": rows}))


if __name__ == "__main__":
    main()
