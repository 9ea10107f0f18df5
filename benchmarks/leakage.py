"""How well the leakage check tells copies from pictures of other subjects, and how fast it compares.

    python benchmarks/leakage.py [--data ../shared/data/train] [--cases 60] [--sets drive ...]

For each set, of up to `--cases` cases of a part: the fewest bits by which the hash of a picture differs from one of
another subject, and the bits by which it differs from copies of itself (`COPIES`). The distance `MOST_BITS` was chosen
on training and validation images; the same numbers of the test part are beside them. Volumes count by four slices.
Results: benchmarks/results/leakage.json, and a table on the terminal.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from provenance import DATA, RESULTS, Entry, origin, rounded, write_json

from lexitome.data.dataset import Case, Dataset
from lexitome.data.intensity import to_pictures
from lexitome.data.sources.folder import load_dataset
from lexitome.data.trained_on import BITS, WORDS, Hashes, near, picture_hash
from lexitome.evaluation.leakage import MOST_BITS

PACKAGES = ("numpy", "scipy", "pillow")
SETS = ("acdc_cardiac_mr2d", "btcv_abdomen_ct2d", "busi_breast_us", "chaos_liver_kidney_spleen_mr2d",
        "cheng_brain_tumor_mr2d", "drishti_gs", "drive", "dsb2018_fluorescence_nuclei", "duke_dme_fluid",
        "hc18_fetal_head_us", "hippocampus_msd_mr3d", "isic2018_task1", "jsrt_scr", "kvasir_seg", "la_atrium_mr3d",
        "ufba425_teeth", "usgra_nerve_vessel_us")  # fmt: skip
PARTS = {"chosen on": ("train", "val"), "held out": ("test",)}
SLICES = 4
MANY = 10_000
Picture = NDArray[np.uint8]


def stored(picture: Picture, quality: int, scale: float = 1.0, side: int | None = None) -> Picture:
    """Resized by a factor, or squeezed into a square, and compressed to JPEG."""
    size = (side, side) if side else tuple(max(8, round(scale * n)) for n in picture.shape[1::-1])
    buffer = io.BytesIO()
    Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def windowed(picture: Picture, low: float, high: float, gamma: float = 1.0) -> Picture:
    """Grey levels low..high shown as 0..255, bent by gamma."""
    share = np.clip((picture.astype(np.float32) - low) / (high - low), 0, 1)
    return (255 * share**gamma).astype(np.uint8)


COPIES: dict[str, Callable[[Picture], Picture]] = {
    "JPEG 30": lambda p: stored(p, 30),
    "half size, JPEG 50": lambda p: stored(p, 50, 0.5),
    "1.6 times, JPEG 75": lambda p: stored(p, 75, 1.6),
    "squeezed to 256 x 256, JPEG 80": lambda p: stored(p, 80, side=256),
    "gamma 0.6, JPEG 80": lambda p: stored(windowed(p, 0, 255, 0.6), 80),
    "gamma 1.6, JPEG 80": lambda p: stored(windowed(p, 0, 255, 1.6), 80),
    "window 30 to 200, JPEG 80": lambda p: stored(windowed(p, 30, 200), 80),
    "window 0 to 140, JPEG 80": lambda p: stored(windowed(p, 0, 140), 80),
    "window 60 to 255, JPEG 80": lambda p: stored(windowed(p, 60, 255), 80),
}


def pictures_of(case: Case, dataset: Dataset) -> list[Picture]:
    slices = to_pictures(case.content.volume(), dataset.window)
    chosen = np.unique(np.linspace(0, len(slices) - 1, min(SLICES, len(slices))).round().astype(int))
    return [np.ascontiguousarray(slices[i]) for i in chosen]


def measure_part(dataset: Dataset, parts: Sequence[str], count: int) -> Entry | None:
    """Bits to copies and to strangers; None where a part has fewer than two subjects."""
    cases = [case for case in dataset.cases if case.split in parts]
    chosen = np.random.default_rng(0).permutation(len(cases))[:count]
    hashes: list[Hashes] = []
    units: list[str] = []
    stems: list[str] = []
    copies: dict[str, list[int]] = {name: [] for name in COPIES}
    for i in sorted(chosen):
        for picture in pictures_of(cases[i], dataset):
            own = picture_hash(picture)
            if own is None:
                continue
            hashes.append(own)
            units.append(cases[i].unit)
            stems.append(cases[i].stem)
            for name, change in COPIES.items():
                other = picture_hash(change(picture))
                copies[name].append(BITS if other is None else bits_between(own, other))
    if len(set(units)) < 2:
        return None
    nearest = nearest_strangers(np.stack(hashes), units)
    within = sorted({(bits, *sorted((stems[i], stems[j]))) for i, (bits, j) in enumerate(nearest) if bits <= MOST_BITS})
    return {
        "pictures": len(hashes), "subjects": len(set(units)), "nearest_stranger": min(nearest)[0],
        "with_a_stranger_within": sum(bits <= MOST_BITS for bits, _ in nearest), "pairs": within, "copies": copies,
    }  # fmt: skip


def bits_between(one: Hashes, other: Hashes) -> int:
    return next(bits for _, _, bits in near(one[None], other[None], BITS))


def nearest_strangers(hashes: Hashes, units: Sequence[str]) -> list[tuple[int, int]]:
    """Of each picture, the fewest bits to one of another subject, and which one that is."""
    nearest = [(BITS, i) for i in range(len(hashes))]
    for i, j, bits in near(hashes, hashes, BITS):
        if units[i] != units[j]:
            nearest[i] = min(nearest[i], (bits, j))
    return nearest


def together(found: dict[str, Entry]) -> Entry:
    """Of all sets: how many pictures have a stranger, and of each kind of copy, how many are found."""
    kinds = {}
    for name in COPIES:
        bits = np.array([b for entry in found.values() for b in entry["copies"][name]])
        kinds[name] = {"found": float((bits <= MOST_BITS).mean()), "median": float(np.median(bits)),
                       "99 %": float(np.percentile(bits, 99))}  # fmt: skip
    return {
        "pictures": sum(entry["pictures"] for entry in found.values()),
        "with_a_stranger_within": sum(entry["with_a_stranger_within"] for entry in found.values()),
        "nearest_stranger": {name: entry["nearest_stranger"] for name, entry in found.items()},
        "pairs": {name: entry["pairs"] for name, entry in found.items() if entry["pairs"]},
        "copies": kinds,
    }


def time_comparison() -> Entry:
    """Everything with everything, one thread."""
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 2**63, (MANY, WORDS), dtype=np.uint64) for _ in range(2))
    wall, own = time.perf_counter(), time.process_time()
    found = sum(1 for _ in near(one, other, MOST_BITS))
    return {"pictures": MANY, "with": MANY, "seconds": time.perf_counter() - wall,
            "processor_seconds": time.process_time() - own, "found": found}  # fmt: skip


def measure(data: Path, names: Sequence[str], count: int) -> Entry:
    datasets = [load_dataset(data / name) for name in names]
    result = origin(PACKAGES, datasets, seed=0, threads=1)
    result |= {"most_bits": MOST_BITS, "bits": BITS, "comparison": time_comparison()}
    for title, parts in PARTS.items():
        found: dict[str, Entry] = {}
        for dataset in datasets:
            entry = measure_part(dataset, parts, count)
            if entry is not None:
                found[dataset.name] = entry
                print(
                    f"{title}: {dataset.name}: nearest stranger {entry['nearest_stranger']} {entry['pairs']}",
                    flush=True,
                )
        result[title] = together(found)
    return rounded(result)


def table(result: Entry) -> str:
    lines = [f"{'found of copies':34}" + "".join(f"{title:>12}" for title in PARTS)]
    for name in COPIES:
        lines.append(f"{name:34}" + "".join(f"{result[t]['copies'][name]['found']:12.1%}" for t in PARTS))
    said = [f"{t}: {result[t]['with_a_stranger_within']} of {result[t]['pictures']} pictures" for t in PARTS]
    return "\n".join([*lines, f"a stranger within {MOST_BITS} bits: {'; '.join(said)}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--cases", type=int, default=60, help="of a set and part, at most")
    parser.add_argument("--output", type=Path, default=RESULTS / "leakage.json")
    options = parser.parse_args()
    result = measure(options.data, options.sets, options.cases)
    write_json(options.output, result)
    print(table(result))


if __name__ == "__main__":
    main()
