"""MedDINOv3's segmenter as a `training.engine.Task`: patches of slices, Dice and cross-entropy of fixed targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from lexitome.data.dataset import Target
from lexitome.data.normalisation import Normalisation
from lexitome.data.patches import Augmentation, Layout, change_tones, draw_place, take
from lexitome.data.shelves import Shelf
from lexitome.inference.tiled import Windows, answered, asker, masks_from
from lexitome.training.dense import (
    Batch,
    TargetScores,
    class_terms,
    judged_of,
    known_of,
    masks_of,
    pairs,
    region_terms,
    row_at,
    shown_pixels,
)


@dataclass(frozen=True, eq=False)
class SegmentationTask:
    """
    Args:
        exclusive: whether the targets and the background are classes of a softmax, see `training.dense.exclusive`.
        patches: of a step.
        foreground: share of the patches that must show a target, which is drawn first.
        train, val: rows of the shelf.
        seed: of the patches.
    """

    shelf: Shelf
    normalisation: Normalisation
    layout: Layout
    augmentation: Augmentation
    targets: tuple[Target, ...]
    exclusive: bool
    patches: int
    foreground: float
    train: tuple[int, ...]
    val: tuple[int, ...]
    seed: int = 0

    @property
    def outputs(self) -> int:
        """Channels of the network."""
        return len(self.targets) + self.exclusive

    @cached_property
    def showing(self) -> list[list[int]]:
        """Training rows that show each target."""
        present = {row: set(self.shelf.rows[row].present) for row in self.train}
        return [[row for row, codes in present.items() if codes & set(target.codes)] for target in self.targets]

    def images(self, step: int) -> int:
        return self.patches

    def batch(self, step: int, indices: range) -> Batch:
        drawn = [self._patch(step, index) for index in indices]
        pictures, masks, known, judged = (torch.stack(list(each)) for each in zip(*drawn, strict=True))
        return Batch(pictures, masks, known, judged)

    def _patch(self, step: int, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patch `index` of a step. As in nnU-Net, the last ones of a step show a target for sure; there every target
        has the same turns, and the slices that show it too."""
        rng = np.random.default_rng((self.seed, step, index, 1))
        row, shown = row_at(self.train, self.seed, step * self.patches + index), tuple[int, ...]()
        if index >= round(self.patches * (1 - self.foreground)):
            choices = [(target, rows) for target, rows in zip(self.targets, self.showing, strict=True) if rows]
            if choices:
                target, rows = choices[int(rng.integers(len(choices)))]
                row, shown = rows[int(rng.integers(len(rows)))], target.codes
        place = draw_place(self.shelf, row, self.layout, self.augmentation, rng, shown)
        picture, codes = take(self.shelf, row, place, self.layout)
        is_8_bit = self.shelf.picture(row).dtype == np.uint8
        shown_as = self.normalisation.finish(picture[None], is_8_bit=is_8_bit)[0]
        if self.augmentation.tones:
            shown_as = change_tones(shown_as, int(rng.integers(2**31)))
        known = known_of(self.shelf.rows[row].unknown, self.targets)
        return shown_as, masks_of(codes, self.targets), known, judged_of(codes)

    def counts(self, batch: Batch) -> Tensor:
        return shown_pixels(batch) if self.exclusive else pairs(batch)

    def loss(self, model: nn.Module, batch: Batch, totals: Tensor) -> dict[str, Tensor]:
        terms = class_terms if self.exclusive else region_terms
        return terms(model(batch.pictures), batch, totals)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean Dice of the targets that the validation slices show, in the resolution of the slices."""
        return score(self, model, self.val)


def score(task: SegmentationTask, model: nn.Module, rows: Sequence[int]) -> dict[str, float]:
    """Mean Dice over targets of the slices that show them, each answered whole and in its own resolution; of a network
    in 3D within the slices around it."""
    scores, shelf, layout = TargetScores(), task.shelf, task.layout
    device = next(model.parameters()).device
    windows = Windows(layout.side, layout.depth)
    for row in rows:
        picture, codes = shelf.picture(row), shelf.codes(row)
        if layout.depth > 1:
            picture = np.stack([shelf.picture(index) for index in _around(task, row)], 1)
        seen = torch.from_numpy(np.array(picture)).to(device)
        ask = asker(model, task.normalisation, exclusive=task.exclusive, is_8_bit=picture.dtype == np.uint8)
        likely = answered(seen, layout.grid(codes.shape, shelf.spacing(row)), windows, ask)
        likely = likely[:, layout.depth // 2] if layout.depth > 1 else likely
        masks = masks_from(likely, exclusive=task.exclusive).cpu().numpy()
        for target, mask in zip(task.targets, masks, strict=True):
            scores.add(target, mask, codes, shelf.rows[row].unknown)
    return scores.metrics()


def _around(task: SegmentationTask, row: int) -> list[int]:
    """The slices of a stack whose middle is `row`, the last of the volume repeated."""
    rows, depth = task.shelf.rows, task.layout.depth
    found: list[int] = []
    for index in range(row - depth // 2, row - depth // 2 + depth):
        inside = 0 <= index < len(rows) and rows[index].stem == rows[row].stem
        found.append(index if inside else found[-1] if index > row else row)
    return found
