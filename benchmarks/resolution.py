"""What the size of the picture buys: Dice of thin and tiny targets at several sides, and in overlapping tiles.

    python benchmarks/resolution.py --model compact [--sets drive ...] [--sides 256 320 ...]

Validation images at their own resolution, asked by words through ONNX Runtime as users do, but at each side in turn
and without the presence threshold. With tiles, the picture is cut into 2 x 2 parts that overlap, each is shown at that
side, and the logits are blended where parts meet. Results: benchmarks/results/resolution.json, and a table on the
terminal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from provenance import DATA, RESULTS, Entry, origin, rounded, shown, write_json

from lexitome.data.cases import read_case
from lexitome.data.dataset import UNKNOWN_CODE, Case, Dataset, Target
from lexitome.data.intensity import to_pictures
from lexitome.data.prompt_maps import no_place
from lexitome.data.sources.folder import load_dataset
from lexitome.evaluation.metrics.overlap import count, dice
from lexitome.inference.network import Network
from lexitome.models.catalog import find_model
from lexitome.text import TextEncoder

PACKAGES = ("numpy", "onnxruntime", "pillow")
SETS = ("drive", "drosophila_vnc_sstem", "dsb2018_brightfield_nuclei", "dsb2018_fluorescence_nuclei",
        "dsb2018_histology_nuclei", "gbm40_nuclei")  # fmt: skip
SIDES = (256, 320, 384, 448, 512, 640)
OVERLAP = 0.2
"""Of a tile's length, shared with its neighbour."""
Look = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Picture (H, W, 3) to logits (T, H, W)."""


@dataclass(frozen=True)
class Options:
    model: str
    data: Path
    sets: tuple[str, ...]
    sides: tuple[int, ...]
    cases: int
    threads: int


def looking(network: Network, vectors: NDArray[np.float32], side: int) -> Look:
    """Ask about a whole picture, squeezed into a square as in training."""
    nowhere = np.repeat(no_place(side)[None], len(vectors), axis=0)

    def look(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        square = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR), np.float32)
        features = network.encode(np.ascontiguousarray(square.transpose(2, 0, 1))[None])
        logits = network.decode(features, vectors, nowhere).logits
        size = picture.shape[1::-1]
        return np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BILINEAR)) for x in logits])

    return look


def in_tiles(look: Look, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """2 x 2 tiles; where they overlap the weight falls linearly from one to the other."""
    height, width = picture.shape[:2]
    total: NDArray[np.float32] | None = None
    weights = np.zeros((height, width), np.float32)
    for top, bottom in halves(height):
        for left, right in halves(width):
            logits = look(np.ascontiguousarray(picture[top:bottom, left:right]))
            weight = np.outer(ramp(top, bottom, height), ramp(left, right, width))
            total = np.zeros((len(logits), height, width), np.float32) if total is None else total
            total[:, top:bottom, left:right] += logits * weight
            weights[top:bottom, left:right] += weight
    assert total is not None
    return total / weights


def halves(length: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two ranges that cover `length` and share `OVERLAP` of their own length."""
    size = min(length, round(length / (2 - OVERLAP)))
    return (0, size), (length - size, length)


def ramp(first: int, end: int, length: int) -> NDArray[np.float32]:
    """(end - first,) weights: 1, falling towards the edge that the other tile covers."""
    size = end - first
    shared = max(1, 2 * size - length)
    falling = np.minimum(1.0, (size - np.arange(size) - 0.5) / shared)
    return np.asarray(falling if first == 0 else falling[::-1], np.float32)


def spread_cases(dataset: Dataset, count: int) -> list[Case]:
    cases = [case for case in dataset.cases if case.split == "val"]
    return [cases[round(i)] for i in np.linspace(0, len(cases) - 1, min(count, len(cases)))]


def measure_set(options: Options, network: Network, dataset: Dataset) -> list[Entry]:
    """An entry for each target, side and way of cutting."""
    targets = [target for target in dataset.targets if not target.derived]
    vectors = TextEncoder.load().embed([target.name for target in targets])
    read = [read_case(case) for case in spread_cases(dataset, options.cases)]
    pictures = [(to_pictures(volume, dataset.window)[0], codes[0]) for volume, codes in read]
    found = []
    for side in options.sides:
        whole = looking(network, vectors, side)
        for tiles in (1, 4):
            scores, seconds = score(whole, pictures, targets, tiles)
            found += [
                {"set": dataset.name, "target": name, "side": side, "tiles": tiles, "cases": len(values),
                 "dice": 100 * statistics.fmean(values), "seconds": seconds}
                for name, values in scores.items() if values
            ]  # fmt: skip
    return found


def score(
    look: Look, pictures: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]], targets: Sequence[Target], tiles: int
) -> tuple[dict[str, list[float]], float]:
    """Dice of each target in the pictures that show it; median seconds of a picture, all targets together."""
    scores: dict[str, list[float]] = {target.name: [] for target in targets}
    seconds = []
    for picture, codes in pictures:
        began = time.perf_counter()
        masks = (look(picture) if tiles == 1 else in_tiles(look, picture)) > 0
        seconds.append(time.perf_counter() - began)
        for target, mask in zip(targets, masks, strict=True):
            truth = np.isin(codes, target.codes)
            if truth.any():
                scores[target.name].append(dice(count(mask & (codes != UNKNOWN_CODE), truth)) or 0.0)
    return scores, statistics.median(seconds)


def measure(options: Options) -> Entry:
    card = find_model(options.model)
    network = Network.load(card, options.threads)
    datasets = [load_dataset(options.data / name) for name in options.sets]
    result = origin(PACKAGES, datasets, seed=0, threads=options.threads)
    rows = [row for dataset in datasets for row in measure_set(options, network, dataset)]
    model = {"name": card.name, "from": shown(options.model), "sha256": network.weights}
    return rounded({**result, "model": model, "overlap": OVERLAP, "part": "val", "rows": rows})


def table(rows: Sequence[Entry]) -> str:
    """Markdown: a line for each target and way of cutting, a column for each side."""
    sides = sorted({row["side"] for row in rows})
    values = {(row["set"], row["target"], row["tiles"], row["side"]): row["dice"] for row in rows}
    lines = ["| set | target | tiles | " + " | ".join(map(str, sides)) + " |", "|---|---|---|" + "---:|" * len(sides)]
    for name, target, tiles in dict.fromkeys(key[:3] for key in values):
        cells = " | ".join(f"{values[name, target, tiles, side]:.1f}" for side in sides)
        lines.append(f"| {name} | {target} | {'whole' if tiles == 1 else '2 x 2'} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact", help="a name or a folder")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of annotated sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--cases", type=int, default=20, help="validation images of each set")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS / "resolution.json")
    typed = vars(parser.parse_args())
    out = typed.pop("out")
    result = measure(Options(**{**typed, "sets": tuple(typed["sets"]), "sides": tuple(typed["sides"])}))
    write_json(out, result)
    print(table(result["rows"]))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
