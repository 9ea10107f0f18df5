"""What attention costs on a CPU: torch's kernel in bfloat16 beside those of `models.attention`.

    python benchmarks/attention.py [--keys 25 145 ...] [--repeats 9]

`scaled_dot_product_attention` for so many keys and queries, 8 pictures and 6 heads of 64 channels:

    training    forward and backward under autocast, inside `ShortAttentionInFloat32`
    frozen      forward alone, bfloat16, inside `LongAttentionByHead`

Medians of runs that take turns with torch's own way; "times" is torch's time by ours, "error" the largest difference of
the result from float32 throughout, in units of its largest value. Results go to benchmarks/results/attention.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from provenance import RESULTS, Entry, origin, rounded, write_json
from torch import Tensor
from torch.nn import functional as F

from lexitome.models.attention import LONG, SHORT, LongAttentionByHead, ShortAttentionInFloat32

PACKAGES = ("torch",)
PICTURES, HEADS, CHANNELS = 8, 6, 64
KEYS = [10, 25, 37, 77, 145, 201, 261, 401, 577, 789, 1029, 2309]
MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "training": ShortAttentionInFloat32, "frozen": LongAttentionByHead,
}  # fmt: skip


def measure(purpose: str, keys: int, repeats: int) -> Entry:
    """Seconds of torch's way and of ours."""
    generator = torch.Generator().manual_seed(keys)
    given = [torch.randn(PICTURES, HEADS, keys, CHANNELS, generator=generator) for _ in range(3)]
    exact = F.scaled_dot_product_attention(given[0], given[1], given[2])
    seconds: dict[str, list[float]] = {"torch": [], "ours": []}
    error: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for way in seconds if repeat % 2 == 0 else reversed(seconds):
            with nullcontext() if way == "torch" else MODES[purpose]():
                spent, seen = once(given, backward=purpose == "training")
            if repeat:  # the first one warms up
                seconds[way].append(spent)
            error[way] = float((seen.float() - exact).abs().max() / exact.abs().max())
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    changed = keys <= SHORT if purpose == "training" else keys >= LONG
    return {"purpose": purpose, "keys": keys, "changed": changed, "seconds": medians,
            "times": medians["torch"] / medians["ours"], "error": error}  # fmt: skip


def once(given: list[Tensor], *, backward: bool) -> tuple[float, Tensor]:
    """Seconds, and the result."""
    query, key, value = (each.bfloat16().requires_grad_(backward) for each in given)
    with torch.autocast("cpu", torch.bfloat16, enabled=backward), torch.set_grad_enabled(backward):
        began = time.perf_counter()
        seen = F.scaled_dot_product_attention(query, key, value)
        if backward:
            seen.sum().backward()
        return time.perf_counter() - began, seen.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=KEYS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "attention.json")
    typed = parser.parse_args()
    rows = []
    for purpose in MODES:
        for keys in typed.keys:
            rows.append(row := measure(purpose, keys, typed.repeats))
            torch_ms, ours_ms = (1000 * row["seconds"][way] for way in ("torch", "ours"))
            changed = "" if row["changed"] else " (left to torch)"
            print(f"{purpose:<9} {keys:5d} keys: torch {torch_ms:7.1f} ms, ours {ours_ms:7.1f} ms, "
                  f"{row['times']:.2f} x{changed}", flush=True)  # fmt: skip
    about = origin(PACKAGES, [], seed=0, threads=torch.get_num_threads())
    write_json(typed.out, rounded({**about, "short": SHORT, "long": LONG, "rows": rows}))


if __name__ == "__main__":
    main()
