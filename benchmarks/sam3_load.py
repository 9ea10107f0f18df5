"""Time and memory of loading SAM3: an official file with random weights, as large as the released one.

    python benchmarks/sam3_load.py --preset full --out FOLDER      (3.4 GB of disk and of memory)

Each load runs in a process of its own. Peak memory is what the system counts for the process at its worst (pages of the
mapped file included) less what it counted when torch and transformers were imported; its ratio is to the weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Sam3Model

from lexitome.models.sam3.conversion import in_full, left_out, to_official
from lexitome.models.sam3.presets import Preset, config_of
from lexitome.models.sam3.tracker import Sam3Tracker, tracker_config
from lexitome.models.sam3.weights import load_sam3

FILE = "sam3.pt"


def write_official(folder: Path, preset: Preset, seed: int = 0) -> Path:
    """A random official checkpoint, detector and tracker, with the state of an optimizer that is to be left alone."""
    config = config_of(preset)
    vision: Any = config.vision_config
    with torch.device("meta"):
        model, tracker = Sam3Model(config), Sam3Tracker(tracker_config(vision))
        shapes = to_official(in_full(model.state_dict(), tracker.state_dict()), left_out(model))
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.empty(like.shape, dtype=like.dtype).normal_(_scale(name, like), 0.02, generator=generator)
        for name, like in shapes.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state, "optimizer": {"moment": torch.zeros(1000)}}, folder / FILE)
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    return folder / FILE


def _scale(name: str, like: torch.Tensor) -> float:
    """Weights of norms lie around 1, else nothing would come through them."""
    return 1.0 if like.dim() == 1 and name.endswith("weight") else 0.0


def measure(path: Path, dtype: str, tracker: bool) -> dict[str, Any]:
    """One load, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_load, (path, dtype, tracker))


def _load(path: Path, dtype: str, tracker: bool) -> dict[str, Any]:
    before = _memory("VmRSS")
    began, busy = time.perf_counter(), time.process_time()
    loaded = load_sam3(path, dtype=getattr(torch, dtype), tracker=tracker)
    seconds = time.perf_counter() - began
    busy = time.process_time() - busy
    parts = [loaded.net] + ([loaded.tracker] if loaded.tracker is not None else [])
    stored = sum(value.numel() for part in parts for value in part.parameters()) * 4
    held = sum(value.nbytes for part in parts for value in part.parameters())
    peak = _memory("VmHWM") - before
    return {
        "dtype": dtype, "tracker": tracker, "seconds": round(seconds, 2), "cpu_seconds": round(busy, 2),
        "peak_mb": round(peak / 1e6), "weights_mb": round(held / 1e6), "file_mb": round(path.stat().st_size / 1e6),
        "peak_to_weights_in_file": round(peak / stored, 3), "peak_to_weights": round(peak / held, 3),
    }  # fmt: skip


def _memory(what: str) -> int:
    """Bytes that Linux counts for this process: now (VmRSS) or at its worst (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise OSError(f"the system does not tell {what}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=("full", "small", "tiny"), default="full")
    parser.add_argument("--out", type=Path, required=True, help="folder for the file, which stays there")
    options = parser.parse_args()
    place = options.out / FILE
    if not place.is_file():
        write_official(options.out, options.preset)
    for kind in ("float32", "bfloat16"):
        for with_tracker in (False, True):
            print(json.dumps(measure(place, kind, with_tracker)), flush=True)
