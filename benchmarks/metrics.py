"""How fast masks are scored, beside MONAI's and DeepMind's own code on the same cases in the same run.

    python benchmarks/metrics.py                      # 10,000 images of 512 x 512, then volumes of 128 x 256 x 256
    python benchmarks/metrics.py --images 50 --side 128 --volumes 1 --shape 32 64 64

Overlaps: every metric of `evaluation.metrics.overlap` for each image, on `--jobs` threads as in an evaluation; MONAI's
Dice and IoU for the first `--peers` images. Surfaces: NSD, HD95, HD and ASSD, on one thread; our time includes boundary
IoU, which the others do not have. Cases are smooth blobs and disturbed copies of them, made beforehand, and a few of
them again and again; `KINDS` says how volumes are disturbed. Tools take turns on each case; medians, and how many times
longer the others take, go to benchmarks/results/metrics.json. Tools that are not installed are left out. `--check`
fails if a limit of `LIMITS` is exceeded (they are for the default sizes).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from provenance import RESULTS, Entry, origin, rounded, write_json
from scipy.ndimage import gaussian_filter

from lexitome.evaluation.metrics import OVERLAPS, measure_surfaces
from lexitome.evaluation.metrics.geometry import metric_matrix
from lexitome.evaluation.metrics.overlap import count

LIMITS = {"overlap_seconds": 60.0, "surface_seconds": 2.0}
SPACING = (2.5, 0.8, 0.8)
"""z, y, x in mm."""
TOLERANCE = 2.0
DISTINCT = 20
"""Different images; more are these again."""
KINDS = {
    "alike": "the outline is uneven in another way",
    "far": "the prediction is another, smaller blob in the corner",
    "speckled": "one voxel in 100 is turned over",
}
"""What is wrong with a predicted volume."""
Masks = tuple[np.ndarray, np.ndarray]
Tool = Callable[[np.ndarray, np.ndarray], object]


def blob(rng: np.random.Generator, shape: Sequence[int], kind: str = "alike") -> Masks:
    """(prediction, reference): an ellipse over most of the array with an uneven outline, and what became of it, see
    `KINDS`."""
    grid = [
        np.linspace(-1, 1, n).reshape([-1 if i == j else 1 for j in range(len(shape))]) for i, n in enumerate(shape)
    ]
    field = 0.7 - np.add.reduce(np.broadcast_arrays(*(axis**2 for axis in grid)))
    rough = [gaussian_filter(rng.normal(size=shape), [max(n / 24, 1.0) for n in shape]) for _ in range(2)]
    reference = field + 0.1 * rough[0] / rough[0].std() > 0
    if kind == "far":
        return np.add.reduce(np.broadcast_arrays(*((axis + 0.6) ** 2 for axis in grid))) < 0.05, reference
    prediction = field + 0.1 * rough[0] / rough[0].std() + 0.05 * rough[1] / rough[1].std() > 0
    return prediction ^ (rng.random(shape) < 0.01) if kind == "speckled" else prediction, reference


def our_overlaps(prediction: np.ndarray, reference: np.ndarray) -> list[float | None]:
    counts = count(prediction, reference)
    return [of(counts) for of in OVERLAPS.values()]


def our_surfaces(prediction: np.ndarray, reference: np.ndarray) -> object:
    return measure_surfaces(prediction, reference, metric_matrix(np.diag([*SPACING[::-1], 1.0]), 3), TOLERANCE)


def monai_tools() -> dict[str, Tool]:
    """(overlaps, surfaces) by MONAI, if it is installed."""
    if not find_spec("monai"):
        return {}
    import torch
    from monai import metrics

    torch.set_num_threads(1)

    def tensors(prediction: np.ndarray, reference: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(prediction[None, None]).float(), torch.from_numpy(reference[None, None]).float()

    def overlaps(prediction: np.ndarray, reference: np.ndarray) -> object:
        pair = tensors(prediction, reference)
        return metrics.compute_dice(*pair), metrics.compute_iou(*pair)

    def surfaces(prediction: np.ndarray, reference: np.ndarray) -> object:
        one, other = tensors(prediction, reference)
        spacing = list(SPACING)
        return (
            metrics.compute_surface_dice(one, other, [TOLERANCE], True, spacing=spacing, use_subvoxels=True),
            metrics.compute_hausdorff_distance(one, other, True, percentile=95, spacing=spacing),
            metrics.compute_hausdorff_distance(one, other, True, spacing=spacing),
            metrics.compute_average_surface_distance(one, other, True, symmetric=True, spacing=spacing),
        )

    return {"overlaps": overlaps, "surfaces": surfaces}


def deepmind_tools() -> dict[str, Tool]:
    """Surfaces by surface-distance, if it is installed."""
    if not find_spec("surface_distance"):
        return {}
    import surface_distance

    def surfaces(prediction: np.ndarray, reference: np.ndarray) -> object:
        found = surface_distance.compute_surface_distances(reference, prediction, SPACING)
        return (
            surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE),
            surface_distance.compute_robust_hausdorff(found, 95),
            surface_distance.compute_robust_hausdorff(found, 100),
            surface_distance.compute_average_surface_distance(found),
        )

    return {"surfaces": surfaces}


def timed(tools: dict[str, Tool], cases: Sequence[Masks]) -> Entry:
    """Median wall seconds per case of each tool, after one call that does not count, and the ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    for tool in tools.values():
        tool(*cases[0])
    for case in cases:
        for name, tool in tools.items():
            began = time.perf_counter()
            tool(*case)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = medians[next(iter(tools))]
    return {
        "cases": len(cases),
        "median_seconds": medians,
        "times_as_long": {name: value / first for name, value in medians.items()},
    }


def measure(options: argparse.Namespace) -> Entry:
    rng = np.random.default_rng(options.seed)
    images = [blob(rng, (options.side, options.side)) for _ in range(min(DISTINCT, options.images))]
    began = time.perf_counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda i: our_overlaps(*images[i % len(images)]), range(options.images)))
    overlap_seconds = time.perf_counter() - began
    peers = {"monai": monai_tools(), "surface-distance": deepmind_tools()}
    overlap = {"lexitome": our_overlaps, **{n: t["overlaps"] for n, t in peers.items() if "overlaps" in t}}
    surface = {"lexitome": our_surfaces, **{n: t["surfaces"] for n, t in peers.items() if "surfaces" in t}}
    result: Entry = {
        "overlap": {
            "images": len(done), "side": options.side, "jobs": options.jobs, "seconds": overlap_seconds,
            "beside_others": timed(overlap, [images[i % len(images)] for i in range(options.peers)]),
        },
        "limits": LIMITS,
    }  # fmt: skip
    for kind, said in KINDS.items():
        cases = [blob(rng, options.shape, kind) for _ in range(options.volumes)]
        about = {"prediction": said, "shape": list(options.shape), "spacing": list(SPACING)}
        result[f"surface_{kind}"] = about | timed(surface, cases)
    return result | origin(["numpy", "scipy", *filter(find_distribution, peers)], [], seed=options.seed,
                           threads=options.jobs)  # fmt: skip


def find_distribution(name: str) -> bool:
    return find_spec(name.replace("-", "_")) is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--peers", type=int, default=200, help="images that the other tools score, too")
    parser.add_argument("--volumes", type=int, default=5, help=f"of each kind: {', '.join(KINDS)}")
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 256, 256), metavar=("Z", "Y", "X"))
    parser.add_argument("--jobs", type=int, default=2, help="threads of the overlaps; all else runs on one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="fail if a limit is exceeded")
    parser.add_argument("--out", type=Path, default=RESULTS / "metrics.json")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the other tools
        result = measure(options)
    write_json(options.out, rounded(result, 6))
    ours = {
        "overlap_seconds": result["overlap"]["seconds"],
        "surface_seconds": max(result[f"surface_{kind}"]["median_seconds"]["lexitome"] for kind in KINDS),
    }
    for name, limit in LIMITS.items():
        print(f"{name}: {ours[name]:.3f} (limit {limit})")
    parts = {"overlap": result["overlap"]["beside_others"]} | {kind: result[f"surface_{kind}"] for kind in KINDS}
    for part, entry in parts.items():
        print(part, {name: f"{ratio:.1f} x" for name, ratio in entry["times_as_long"].items()})
    print(f"written to {options.out}")
    return 1 if options.check and any(ours[name] > limit for name, limit in LIMITS.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
