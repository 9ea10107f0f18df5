"""How quickly frozen features are had: a plain loop of transformers against `data.features.extract`; and k-NN.

    python benchmarks/features.py [--data DIR] [--images 64] [--repeats 3] [--presets s b] [--sides 224 512]
    python benchmarks/features.py --knn-only [--bank 100000] [--queries 1000] [--dim 768] [--k 20]

Features: networks of random weights (speed does not depend on them), the JPEGs of a classification set, for each preset
and side. "plain" is what a user of transformers writes: one picture after the other is opened, resized and normalised,
float32, one picture a step. Ours adds in turn bfloat16, batches, and a thread that reads ahead; all are measured in one
run, in turns, files in the memory of the system. Every way starts with files and ends with class tokens and means. The
cosine between the features of plain and ours says what bfloat16 costs.
k-NN: the k best of a bank of random features by `evaluation.probing.neighbours.top`, by scikit-learn's
`NearestNeighbors` (brute force, cosine) and by faiss' `IndexFlatIP` where it is installed; fitting counts.
Results go to benchmarks/results/features.json. Needs lexitome[train].
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from provenance import DATA, RESULTS, Entry, origin, rounded, write_json

from lexitome.data.cases import read_case
from lexitome.data.dataset import Dataset
from lexitome.data.encoder_input import squares
from lexitome.data.features import Encoded, FeatureKey, Item, extract
from lexitome.data.normalisation import DEVIATION, MEAN
from lexitome.data.sources.classes import load_classified
from lexitome.errors import InputError
from lexitome.evaluation.probing.neighbours import top
from lexitome.inference.sam3_loading import chosen_dtype
from lexitome.models.dinov3.presets import PRESETS, build
from lexitome.models.encoders import Encoder, load_encoder

PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "Pillow")
CLASSES = DATA.parent / "classify" / "brain_tumor_mri"
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    data: Path
    images: int
    repeats: int
    presets: tuple[str, ...]
    sides: tuple[int, ...]
    batch: int
    threads: int


def plain(paths: list[Path], preset: str, side: int) -> Callable[[], Vectors]:
    """transformers as its page shows it, without its image processor, whose resizing is the slower one."""
    model = build(preset, 0).model.eval()  # type: ignore[arg-type] # the command line checks
    prefix = 1 + model.config.num_register_tokens
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))

    def run() -> Vectors:
        found = []
        for path in paths:
            with Image.open(path) as opened:
                picture = opened.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
            with torch.inference_mode():
                tokens = model(pixel_values=((values - mean) / deviation)[None]).last_hidden_state[0]
            found.append(torch.stack([tokens[0], tokens[prefix:].mean(0)]).numpy())
        return np.stack(found)

    return run


def ours(
    dataset: Dataset, count: int, encoder: Encoder, side: int, batch: int, *, overlap: bool
) -> Callable[[], Vectors]:
    """`extract` into a new cache each time; without `overlap` the same steps one after the other, nothing written."""
    grid = encoder.at(side)

    def encode(pictures: Vectors) -> Encoded:
        vectors, patches = encoder.encode(torch.from_numpy(pictures))
        return Encoded(vectors.numpy(), patches.numpy())

    def cut(index: int) -> Iterator[Vectors]:
        return squares(read_case(dataset.cases[index])[0], encoder.intensity, side)

    def run() -> Vectors:
        if not overlap:
            parts = [range(begin, min(begin + batch, count)) for begin in range(0, count, batch)]
            return np.concatenate([encode(np.stack([next(cut(i)) for i in part])).vectors for part in parts])
        items = [Item(dataset.cases[i].stem, "", lambda i=i: cut(i)) for i in range(count)]  # type: ignore[misc]
        key = FeatureKey(dataset.name, encoder.name, encoder.sha256, encoder.intensity, "", side, encoder.kinds,
                         encoder.dim, grid)  # fmt: skip
        with tempfile.TemporaryDirectory() as cache:
            return np.array(extract(items, encode, key, Path(cache), batch=batch).vectors)

    return run


def measure_features(options: Options, dataset: Dataset, preset: str, side: int) -> Entry:
    """Images a second of each way, medians over repeats that take turns."""
    count = min(options.images, len(dataset.cases))
    dtype = chosen_dtype("auto")
    whole, half = (load_encoder(f"random:{preset}", dtype=each) for each in (torch.float32, dtype))
    paths = [case.image for case in dataset.cases[:count]]
    ways: dict[str, Callable[[], Vectors]] = {
        "plain transformers, float32, one by one": plain(paths, preset, side),
        f"ours, {_name(dtype)}, one by one": ours(dataset, count, half, side, 1, overlap=False),
        f"ours, {_name(dtype)}, batches": ours(dataset, count, half, side, options.batch, overlap=False),
        f"ours, {_name(dtype)}, batches, read ahead": ours(dataset, count, half, side, options.batch, overlap=True),
        "ours, float32, batches, read ahead": ours(dataset, count, whole, side, options.batch, overlap=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, Vectors] = {}
    for repeat in range(options.repeats):
        for name in ways if repeat % 2 == 0 else reversed(ways):
            began = time.perf_counter()
            answers[name] = ways[name]()
            seconds[name].append(time.perf_counter() - began)
    reference = next(iter(ways))
    rows = []
    for name, spent in seconds.items():
        a, b = answers[reference], answers[name]
        cosines = (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
        rows.append({
            "way": name, "images_per_second": count / statistics.median(spent), "seconds_all": spent,
            "times_plain": statistics.median(seconds[reference]) / statistics.median(spent),
            "cosine_min": float(cosines.min()),
        })  # fmt: skip
    return {"preset": preset, "side": side, "images": count, "batch": options.batch, "ways": rows}


def measure_knn(bank: int, queries: int, dim: int, k: int, repeats: int) -> Entry:
    """Seconds for all queries, and the share of neighbours that all ways agree on."""
    rng = np.random.default_rng(0)
    stored, asked = (rng.standard_normal((n, dim), dtype=np.float32) for n in (bank, queries))
    ways: dict[str, Callable[[], NDArray[np.integer]]] = {
        "ours, chunked torch": lambda: top(stored, asked, k)[1],
        "scikit-learn, brute force": lambda: _of_sklearn(stored, asked, k),
    }
    if importlib.util.find_spec("faiss") is not None:
        ways["faiss, IndexFlatIP"] = lambda: _of_faiss(stored, asked, k)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, NDArray[np.integer]] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - began)
    first = next(iter(found.values()))
    rows = [
        {
            "way": name, "seconds": statistics.median(spent), "seconds_all": spent,
            "same_neighbours": float((np.sort(found[name], 1) == np.sort(first, 1)).mean()),
        }
        for name, spent in seconds.items()
    ]  # fmt: skip
    missing = [] if "faiss, IndexFlatIP" in ways else ["faiss is not installed"]
    return {"bank": bank, "queries": queries, "dim": dim, "k": k, "ways": rows, "notes": missing}


def _of_sklearn(stored: Vectors, asked: Vectors, k: int) -> NDArray[np.integer]:
    from sklearn.neighbors import NearestNeighbors

    rows: NDArray[np.integer] = (
        NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine")
        .fit(stored)
        .kneighbors(asked, return_distance=False)
    )
    return rows


def _of_faiss(stored: Vectors, asked: Vectors, k: int) -> NDArray[np.integer]:
    faiss = importlib.import_module("faiss")
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (stored, asked)]
    index = faiss.IndexFlatIP(stored.shape[1])
    index.add(unit[0])
    rows: NDArray[np.integer] = index.search(unit[1], k)[1]
    return rows


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=CLASSES)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=["s", "b"], choices=PRESETS)
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--knn-only", action="store_true")
    parser.add_argument("--bank", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "features.json")
    typed = parser.parse_args()
    torch.set_num_threads(typed.threads)
    options = Options(
        typed.data, typed.images, typed.repeats, tuple(typed.presets), tuple(typed.sides), typed.batch, typed.threads
    )
    try:
        dataset = load_classified(options.data).dataset
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    result: Entry = {"features": [], "knn": None}
    for preset in () if typed.knn_only else options.presets:
        for side in options.sides:
            entry = measure_features(options, dataset, preset, side)
            result["features"].append(entry)
            for row in entry["ways"]:
                print(f"{preset} {side}: {row['way']:<45} {row['images_per_second']:7.2f} images/s, "
                      f"{row['times_plain']:.2f} x", flush=True)  # fmt: skip
    result["knn"] = measure_knn(typed.bank, typed.queries, typed.dim, typed.k, options.repeats)
    for row in result["knn"]["ways"]:
        print(f"k-NN of {typed.queries} among {typed.bank}: {row['way']:<28} {row['seconds']:.2f} s", flush=True)
    write_json(typed.out, rounded({**origin(PACKAGES, [dataset], seed=0, threads=typed.threads), **result}))


if __name__ == "__main__":
    main()
