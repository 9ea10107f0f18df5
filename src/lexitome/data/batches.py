"""Training batches: pictures, K queries for each, and what the right answers are.

Batch `step` of a run is a pure function of (seed, step): a resumed run sees what it would have seen. Needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from lexitome.data.cache import CachedDataset, Row
from lexitome.data.folder import Target
from lexitome.data.negatives import surely_absent
from lexitome.data.prompt_maps import draw_map
from lexitome.text import TextEncoder

FREE_ROTATION = {
    "kvasir_seg", "isic2017", "isic2018_task1", "fuseg_foot_ulcer", "bccd_wbc", "wbc_tecom", "gbm40_nuclei",
    "dsb2018_brightfield_nuclei", "dsb2018_fluorescence_nuclei", "dsb2018_histology_nuclei", "drosophila_vnc_sstem",
}  # fmt: skip
"""Sets whose pictures have no fixed way up: any rotation and flip shows the same thing."""
MIRROR = FREE_ROTATION | {
    "drive", "drishti_gs", "duke_dme_fluid", "busi_breast_us", "carotid_us", "usgra_nerve_vessel_us",
    "hc18_fetal_head_us", "sts_sarcoma_pet3d", "ufba425_teeth", "cheng_brain_tumor_mr2d",
}  # fmt: skip
"""Sets without a left and a right of the patient that could be confused."""
BOOST = {
    "btcv_abdomen_ct2d": 4.0, "chaos_liver_kidney_spleen_mr2d": 1.5, "kvasir_seg": 2.0, "drosophila_vnc_sstem": 2.0,
    "hippocampus_msd_mr3d": 0.4, "drive": 2.5, "imlab_lung_ct2d": 3.0, "openkbp_hn_ct3d": 0.8,
    "usgra_nerve_vessel_us": 1.5, "la_atrium_mr3d": 0.6, "sts_sarcoma_pet3d": 0.4, "isic2017": 1.5,
    "shenzhen_cxr_lungs": 0.7, "wbc_tecom": 0.7,
}  # fmt: skip
"""A set is drawn with probability ~ sqrt(pictures) x boost: many, small or similar targets need more turns."""
TEMPLATES = (*("{}",) * 6, "the {}", "segment the {}", "{} in {}")


@dataclass(frozen=True)
class Batch:
    """N pictures with K queries each, Q = N K, S the side."""

    pictures: Tensor  # (N, 3, S, S) float32, 0..255, channels last
    text: Tensor  # (Q, T)
    spatial: Tensor  # (Q, 3, S/4, S/4)
    masks: Tensor  # (Q, S, S) float32 0/1
    present: Tensor  # (Q,) float32 0/1


class BatchSource:
    """Draws batches from the training rows of cached datasets."""

    def __init__(self, sets: Sequence[CachedDataset], *, seed: int, queries: int = 3) -> None:
        self.sets = list(sets)
        self.seed, self.queries = seed, queries
        self.text = TextEncoder.load()
        self.rows = [[i for i, row in enumerate(s.rows) if row.split == "train"] for s in self.sets]
        weights = np.array(
            [math.sqrt(len(r)) * BOOST.get(s.dataset.name, 1.0) for s, r in zip(self.sets, self.rows, strict=True)]
        )
        self.set_chance = weights / weights.sum()
        datasets = [s.dataset for s in self.sets]
        self.near = [surely_absent(d, datasets, same_family=True) for d in datasets]
        self.far = [surely_absent(d, datasets, same_family=False) for d in datasets]
        self.row_chance = [self._row_chances(s, r) for s, r in zip(self.sets, self.rows, strict=True)]

    def phrase_vectors(self) -> Tensor:
        """(N, T) vectors of every name and synonym of the sets."""
        phrases = {p for s in self.sets for t in s.dataset.targets for p in (t.name, *t.synonyms)}
        return torch.from_numpy(self.text.embed(sorted(phrases)))

    def batch(self, step: int, count: int, side: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        pictures, texts, maps, masks = [], [], [], []
        for which in rng.choice(len(self.sets), count, p=self.set_chance):
            cached = self.sets[which]
            index = int(rng.choice(self.rows[which], p=self.row_chance[which]))
            picture, codes = augment(cached, index, side, rng)
            pictures.append(picture)
            for slot in range(self.queries):
                words, place, mask = self._query(int(which), cached.rows[index], codes, slot, rng)
                texts.append(words)
                maps.append(place)
                masks.append(mask)
        stacked = torch.from_numpy(np.stack(masks)).float()
        return Batch(
            torch.stack(pictures).contiguous(memory_format=torch.channels_last),
            torch.from_numpy(self.text.embed(texts)),
            torch.from_numpy(np.stack(maps)),
            stacked,
            (stacked.flatten(1).sum(1) > 0).float(),
        )

    def _row_chances(self, cached: CachedDataset, rows: list[int]) -> NDArray[np.float64]:
        """Pictures that show a rare target come more often; empty ones at a tenth of the mean."""
        counts: dict[str, int] = {}
        shown = [[t.name for t in cached.dataset.targets if set(t.codes) & set(cached.rows[i].present)] for i in rows]
        for names in shown:
            for name in names:
                counts[name] = counts.get(name, 0) + 1
        weights = np.array([max((1 / math.sqrt(counts[n]) for n in names), default=0.0) for names in shown])
        weights = np.where(weights > 0, weights, 0.1 * weights[weights > 0].mean())
        return weights / weights.sum()

    def _query(
        self, which: int, row: Row, codes: NDArray[np.uint8], slot: int, rng: np.random.Generator
    ) -> tuple[str, NDArray[np.float32], NDArray[np.bool_]]:
        """(words, spatial map, mask) of one query; targets that were not annotated in this case are never asked."""
        side = codes.shape[0]
        nowhere = np.zeros((3, side // 4, side // 4), dtype=np.float32)
        targets = [t for t in self.sets[which].dataset.targets if not set(t.labels) & set(row.unknown)]
        areas = np.bincount(codes.ravel(), minlength=256)
        present = [t for t in targets if areas[list(t.codes)].sum() >= 4]
        absent = [t for t in targets if areas[list(t.codes)].sum() == 0]
        kind = _kind_of_query(slot, len(present), rng.random())
        if kind == "absent":
            words = self._words(self._pick_absent(which, absent, rng), which, rng)
            return words, nowhere, np.zeros(codes.shape, dtype=bool)
        target = self._pick_present(present, areas, rng)
        mask = np.isin(codes, target.codes)
        if kind == "text":
            return self._words(target, which, rng), nowhere, mask
        place, mask = draw_map(mask, rng)
        return (self._words(target, which, rng) if rng.random() < 0.5 else ""), place, mask

    def _pick_present(self, present: list[Target], areas: NDArray[np.int64], rng: np.random.Generator) -> Target:
        """Small structures first: they are the hard ones and are seen least."""
        weights = np.array([1.0 / math.sqrt(areas[list(t.codes)].sum()) ** 0.5 for t in present])
        weights *= [0.5 if t.derived else 1.0 for t in present]
        return present[int(rng.choice(len(present), p=weights / weights.sum()))]

    def _pick_absent(self, which: int, absent: list[Target], rng: np.random.Generator) -> Target:
        """Absent from this picture of its own set, else of the same modality, else of another one."""
        draw, near, far = rng.random(), self.near[which], self.far[which]
        pool = absent if absent and draw < 0.65 else near if near and draw < 0.9 else far
        return pool[int(rng.integers(len(pool)))]

    def _words(self, target: Target, which: int, rng: np.random.Generator) -> str:
        names = (target.name, target.name, *target.synonyms)
        template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
        return template.format(names[int(rng.integers(len(names)))], self.sets[which].dataset.modality)


def _kind_of_query(slot: int, present: int, draw: float) -> str:
    """ "text", "place" (a box or points, with or without words) or "absent", given how many targets are present."""
    if present == 0:
        return "absent"
    if slot == 0:
        return "place" if draw < 0.1 else "text"
    if slot == 1:
        return "text" if present > 1 else "absent"
    if draw < 0.25:
        return "place"
    return "text" if present > 1 and draw < 0.6 else "absent"


def augment(cached: CachedDataset, index: int, side: int, rng: np.random.Generator) -> tuple[Tensor, NDArray[np.uint8]]:
    """Random zoom, shift, rotation, flips and tone of one cached row: ((3, S, S) 0..255, (S, S) codes)."""
    name = cached.dataset.name
    free = name in FREE_ROTATION
    angle = rng.uniform(-math.pi, math.pi) if free and rng.random() < 0.5 else rng.normal(0, math.radians(8))
    zoom = np.exp(rng.uniform(-0.3, 0.25) + rng.normal(0, 0.06, 2))
    if name in MIRROR and rng.random() < 0.5:
        zoom[0] = -zoom[0]
    if free and rng.random() < 0.5:
        zoom[1] = -zoom[1]
    shift = rng.normal(0, 0.1, 2)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cos * zoom[0], -sin * zoom[1], shift[0]], [sin * zoom[0], cos * zoom[1], shift[1]]])
    grid = F.affine_grid(matrix[None].float(), [1, 1, side, side], align_corners=False)
    picture = torch.from_numpy(np.array(cached.images[index])).permute(2, 0, 1)[None].float()
    codes = torch.from_numpy(np.array(cached.codes[index]))[None, None].float()
    picture = F.grid_sample(picture, grid, "bilinear", "zeros", align_corners=False)[0]
    codes = F.grid_sample(codes, grid, "nearest", "zeros", align_corners=False)[0, 0]
    picture = change_tone(change_window(picture, rng) if cached.dataset.family == "ct" else picture, rng)
    return picture, codes.numpy().astype(np.uint8)


def change_window(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the time another window and gamma of a (3, S, S) CT picture in 0..255: exports come with any."""
    if rng.random() < 0.5:
        return picture
    low, high = rng.uniform(-0.3, 0.25), rng.uniform(0.6, 1.4)
    x = ((picture / 255.0 - low) / (high - low)).clamp(0, 1)
    return 255.0 * x ** float(np.exp(rng.normal(0, 0.35)))


def change_tone(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """Gamma, contrast, brightness, tint, blur and noise of a (3, S, S) picture in 0..255."""
    x = (picture / 255.0).clamp(0, 1)
    if rng.random() < 0.7:
        x = x ** float(np.exp(rng.normal(0, 0.25)))
        x = (x - 0.5) * float(np.exp(rng.normal(0, 0.2))) + 0.5 + float(rng.normal(0, 0.06))
    is_colour = bool((picture[0] != picture[1]).any())
    if is_colour and rng.random() < 0.7:  # stains, lamps and cameras differ more than any training set shows
        mix = np.eye(3) * np.exp(rng.normal(0, 0.12, 3)) + rng.normal(0, rng.uniform(0, 0.15), (3, 3))
        x = torch.einsum("ij,jyx->iyx", torch.tensor(mix, dtype=torch.float32), x)
    if is_colour and rng.random() < 0.08:
        x = x.mean(0, keepdim=True).expand(3, -1, -1)
    if rng.random() < 0.15:
        x = torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, *[rng.uniform(0.4, 1.2)] * 2)))
    if rng.random() < 0.15:
        noise = rng.standard_normal(x.shape[1:], dtype=np.float32) * np.float32(rng.uniform(0.01, 0.06))
        x = x + torch.from_numpy(noise)
    return x.clamp(0, 1) * 255.0
