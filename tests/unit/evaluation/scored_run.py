"""A run folder to report on, made by really scoring a simple method: a threshold on drawn images of bright discs.

The disc is 40 grey levels brighter than noise, dimmer in every fourth case, so that some are missed; every third case
has none. Presence is the share of the image above the threshold, squashed. With "oracle-box" the threshold works within
the box of the reference alone. The mask's probability is how far above the threshold a pixel is, squashed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lexitome.evaluation.metrics import measure_calibration, measure_mask
from lexitome.evaluation.metrics.calibration import to_text
from lexitome.evaluation.report.overlays import choose_examples, render_overlay, save_examples
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import write_json, write_rows
from lexitome.volume import PIXEL_AFFINE, Volume

SIDE = 48
Mask = NDArray[np.bool_]


def draw_case(dataset: str, number: int) -> tuple[Volume, Mask]:
    """(1, 1, Y, X) image and (1, Y, X) reference."""
    rng = np.random.default_rng([number, *dataset.encode()])
    rows, columns = np.mgrid[:SIDE, :SIDE]
    y, x, radius = rng.integers(12, SIDE - 12), rng.integers(12, SIDE - 12), rng.integers(4, 9)
    disc = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2) & (number % 3 != 2)
    contrast = 18 if number % 4 == 3 else 40
    image = np.clip(80 + contrast * disc + rng.normal(0, 9, disc.shape), 0, 255).astype(np.uint8)
    return Volume(image[None, None], PIXEL_AFFINE, spacing_known=False), disc[None]


def answer(volume: Volume, threshold: float, box: Mask | None = None) -> tuple[NDArray[np.float64], float]:
    """(1, Y, X) probabilities, the mask is where they are above a half; and the presence."""
    smooth = ndimage.gaussian_filter(volume.array[0].astype(float), (0, 1, 1))
    above = smooth > threshold
    probability = 1 / (1 + np.exp(-(smooth - threshold) / 5))
    inside = probability if box is None else np.where(box, probability, 0.0)
    return inside, float(1 / (1 + np.exp(-(above.sum() - 25) / 12)))


def box_of(reference: Mask) -> Mask:
    box = np.zeros_like(reference)
    box[ndimage.find_objects(reference.astype(int))[0]] = True
    return box


def make_rows(dataset: str, cases: int, threshold: float, model: str) -> tuple[list[ResultRow], list[tuple]]:
    """Rows of both protocols, and (row, rank, png, place) of the examples among them."""
    rows, seen = [], {}
    for number in range(cases):
        volume, reference = draw_case(dataset, number)
        present = bool(reference.any())
        for protocol in ("text", "oracle-box") if present else ("text",):
            probability, presence = answer(volume, threshold, box_of(reference) if protocol == "oracle-box" else None)
            mask = probability > 0.5
            calibrated, bins = measure_calibration(probability, reference)
            row = ResultRow(
                dataset, "test", f"case_{number:02d}", f"subject_{number // 2}", "drawing", 2, "bright disc", False,
                model, protocol, present, presence=presence if protocol == "text" else None, found=bool(mask.any()),
                taught=True, seconds=0.01 + 0.001 * number,
                metrics=measure_mask(mask, reference, None, tolerance=1.0) | calibrated,
                bins="" if bins is None else to_text(bins),
            )  # fmt: skip
            rows.append(row)
            seen[row.key] = (volume, mask, reference)
    drawn = [(row, rank, *render_overlay(*seen[row.key], side=96)) for row, rank in choose_examples(rows)]
    return rows, drawn


def make_run(
    folder: Path, *, sets: int = 2, cases: int = 12, threshold: float = 100.0, model: str = "threshold"
) -> Path:
    """The folder, as `lexitome evaluate` would leave it; one more question was not answered at all."""
    names = [f"discs_{chr(97 + i % 26)}{i // 26 or ''}" for i in range(sets)]
    made = [make_rows(name, cases, threshold, model) for name in names]
    rows = [row for some, _ in made for row in some]
    empty = np.zeros((1, SIDE, SIDE), dtype=bool)
    _, reference = draw_case(names[0], cases if cases % 3 != 2 else cases + 1)
    rows.append(ResultRow(
        names[0], "test", "case_lost", "subject_lost", "drawing", 2, "bright disc", False, model, "text", True,
        "missing", "there is no such file <case_lost.png>",
        metrics=measure_mask(empty, reference, None, tolerance=1.0),
    ))  # fmt: skip
    write_json(folder / "run.json", info_of(names, cases, model))
    write_rows(folder, rows)
    save_examples(folder, [entry for _, drawn in made for entry in drawn])
    return folder


def info_of(names: list[str], cases: int, model: str) -> dict[str, Any]:
    data = {
        name: {"hash": f"{i:016x}", "split": "test", "cases": cases, "units": cases // 2, "modality": "drawing",
               "licence": "CC0", "external": i == 1, "title": f"Discs & more {i}"}
        for i, name in enumerate(names)
    }  # fmt: skip
    return {
        "command": "lexitome evaluate --model threshold --data discs -o RUN", "model": {"name": model}, "data": data,
        "protocols": ["text", "oracle-box"], "split": "test", "seed": 0, "settings": {"tolerance_px": 1.0},
        "versions": {"numpy": np.__version__}, "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:05+00:00", "peak_memory_mb": 123.4, "jobs": 1,
        "problems": {"unreadable": [], "missing": 1, "failed": 0},
    }  # fmt: skip
