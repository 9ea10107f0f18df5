"""A volume for SAM3 is a sequence along z (needs torch): detected on some slices, followed to all others.

z is the axis along which `data.intensity.choose_view` cuts: inferior to superior, or the axis of the coarsest spacing
where that is more than twice the others, which is the axis of acquisition. The detector is asked about slices a few
millimetres apart (`stride`); the tracker carries what it found to the slices between and beyond (`sam3_follow`).
Without a tracker's weights the detector is asked about every slice, and neighbours support each other.

Memory: the answers take 4 bytes for each slice, mask cell and query, 2 more for each slice and mask cell, and what the
detected objects cover. What the tracker remembers does not depend on the number of slices (`models.sam3.tracker.Bank`),
nor do the features, which wait in a temporary file of bounded size (`sam3_follow.Sights`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lexitome.data.intensity import View
from lexitome.inference.answers import resize
from lexitome.inference.consistency import part_sizes, smooth_slice
from lexitome.inference.objects import connected
from lexitome.inference.sam3_follow import Body, Detection, Followed, Follower, Plan, Sights, Slices
from lexitome.inference.sam3_policies import Plane, spread
from lexitome.models.sam3.network import Features, Sam3Net
from lexitome.models.sam3.tracker import Sam3Tracker

STRIDE = 6.0
"""The detector is asked about slices at most this many mm apart: what is shorter in z may be missed."""
UNKNOWN_STRIDE = 4
"""... and about every so many slices where their distance is not known."""
MOST_ON_A_SLICE = 64
"""Objects of one query that are told apart on a slice; the smaller ones go with the largest."""
SPECK = 16
"""Cells; smaller parts of a mask go with the largest one. SAM3's video mode takes them away."""

Ask = Callable[[Features, int], Sequence[Plane | None]]
"""The detector's answers to all queries about one encoded slice; None for a query that is not asked about it."""
Progress = Callable[[int, int], None]
"""Told (slices done, slices in all)."""


def stride(thickness: float | None) -> int:
    """Slices from one the detector is asked about to the next, for slices so many mm apart (None: not known)."""
    return UNKNOWN_STRIDE if thickness is None else max(1, int(STRIDE / thickness))


@torch.inference_mode()
def propagate(
    net: Sam3Net,
    tracker: Sam3Tracker | None,
    slices: Slices,
    ask: Ask | None,
    given: Sequence[Sequence[Detection]],
    plan: Plan,
    progress: Progress | None = None,
) -> list[Followed]:
    """Find things in a volume.

    Args:
        tracker: None where its weights are not at hand: then every slice is asked about, whatever the plan says.
        slices: each is asked for once, unless the temporary file runs full.
        ask: None where only what is given is to be followed.
        given: for each query what the user has marked, which counts as detected with the score it has.
        progress: a slice counts once, when it is first encoded.
    """
    if tracker is None:
        return _slice_by_slice(net, slices, ask, given, plan, progress)
    total = len(slices)

    def seen(done: int) -> None:
        if progress is not None:
            progress(done, total)

    results = [Followed((total, *_mask_cells(net))) for _ in given]
    detections = [list(each) for each in given]
    asked: list[set[int]] = [set() for _ in given]
    with Sights(net, tracker, slices, seen=seen) as sights:
        for index in plan.asked(total) if ask is not None else ():
            assert ask is not None
            for query, plane in enumerate(ask(sights.encode(index), index)):
                if plane is not None:
                    asked[query].add(index)
                    results[query].saw(index, plane.presence)
                    detections[query] += objects_of(plane, index, plan.faint)
        body = Body((total, *_mask_cells(net)))
        for query, result in enumerate(results):
            Follower(tracker, sights, detections[query], asked[query], plan).run(result, body)
    seen(total)
    return results


def objects_of(plane: Plane, index: int, least: float) -> list[Detection]:
    """The objects of an answer about slice `index`, none where its presence is below `least`.

    Where the network has not told objects apart, the connected parts of the mask: of two kidneys that come into view on
    different slices each has to be followed on its own.
    """
    probability = plane.logits.float().sigmoid().cpu().numpy()
    inside = probability >= 0.5
    if plane.presence < least or not inside.any():
        return []
    owners = _parts(inside) if plane.owners is None else plane.owners
    names = np.unique(owners[inside])
    return [Detection.of(index, plane.presence, np.where(owners == name, probability, 0)) for name in names]


def consistent(probability: NDArray[np.float16], sure: NDArray[np.bool_]) -> NDArray[np.float16]:
    """(slice, h, w) probabilities in which neighbouring slices support each other.

    What that would delete as a whole, such as a structure on a single slice, stays as it was.

    Args:
        sure: (slice,) where presence is high enough; parts that lie on other slices alone are taken away.
    """
    from scipy import ndimage

    touching = np.ones((3, 3, 3))
    result = np.empty_like(probability)
    for index in range(len(probability)):
        result[index] = smooth_slice(probability, index)
    parts, count = ndimage.label(probability >= 0.5, structure=touching)
    lost = np.ones(count + 1, np.bool_)
    lost[parts[result >= 0.5]] = lost[0] = False
    back = lost[parts]
    result[back] = probability[back]
    parts, count = ndimage.label(result >= 0.5, structure=touching)
    doubtful = np.ones(count + 1, np.bool_)
    doubtful[parts[sure]] = doubtful[0] = False
    result[doubtful[parts]] = 0
    return result


class OnGrid(NamedTuple):
    """An answer on the grid of the volume, (Z, Y, X)."""

    mask: NDArray[np.bool_]
    instances: NDArray[np.uint16]  # ids of the structures, 1 and up without gaps; 0 outside the mask, nowhere else
    score: float  # mean probability inside the mask, 0 where it is empty
    probability: NDArray[np.float16] | None


def on_grid(view: View, grid: tuple[int, int, int], followed: Followed, *, probability: bool = False) -> OnGrid:
    """
    Args:
        view: how the slices were cut and turned.
        grid: (Z, Y, X) of the volume.
        probability: whether to hand out probabilities, too.
    """
    sizes = [grid[axis] for axis in view.order]
    mask, instances = np.zeros(sizes, np.bool_), np.zeros(sizes, np.uint16)
    planes = np.zeros(sizes, np.float16) if probability else None
    cells = [
        ((np.arange(size) + 0.5) * count / size).astype(int)
        for size, count in zip(sizes[1:], followed.grid[1:], strict=True)
    ]
    total = 0.0
    for index in np.flatnonzero(followed.probability.any(axis=(1, 2))):
        plane = resize(followed.probability[index].astype(np.float32), sizes[1], sizes[2])
        if planes is not None:
            planes[index] = plane
        inside = plane >= 0.5
        if inside.any():
            mask[index] = inside
            total += float(plane[inside].sum(dtype=np.float64))
            owners = spread(followed.owners[index])[np.ix_(*cells)]  # masks grow a little when they are enlarged
            instances[index] = np.where(inside, owners, 0)
    there = part_sizes(instances, int(instances.max(initial=0))) > 0
    there[0] = False
    numbers = np.where(there, np.cumsum(there), 0).astype(np.uint16)
    return OnGrid(
        np.ascontiguousarray(view.undo(mask)),
        np.ascontiguousarray(view.undo(numbers[instances])),
        total / max(int(mask.sum()), 1),
        None if planes is None else np.ascontiguousarray(view.undo(planes)),
    )


def _slice_by_slice(
    net: Sam3Net,
    slices: Slices,
    ask: Ask | None,
    given: Sequence[Sequence[Detection]],
    plan: Plan,
    progress: Progress | None,
) -> list[Followed]:
    total = len(slices)
    results = [Followed((total, *_mask_cells(net))) for _ in given]
    sure = np.zeros((len(given), total), np.bool_)
    for index in range(total):
        planes = ask(net.encode(slices[index]), index) if ask is not None else [None] * len(given)
        for query, (plane, marked) in enumerate(zip(planes, given, strict=True)):
            found = [each for each in marked if each.index == index]
            if plane is not None:
                results[query].saw(index, plane.presence)
                found += objects_of(plane, index, plan.faint)
            for each in found:
                results[query].saw(index, each.score)
                sure[query, index] |= each.score >= plan.found
                into = results[query].probability[index]
                np.maximum(into, each.plane(), out=into, casting="same_kind")
        if progress is not None:
            progress(index + 1, total)
    for result, certain in zip(results, sure, strict=True):
        result.probability = consistent(result.probability, certain)
        result.owners = connected(result.probability >= 0.5)
        result.objects = int(result.owners.max(initial=0))
    return results


def _parts(inside: NDArray[np.bool_]) -> NDArray[np.integer]:
    """(h, w) ids of the connected parts of a mask; specks, and parts beyond `MOST_ON_A_SLICE`, have the largest's."""
    from scipy import ndimage

    parts, count = ndimage.label(inside, structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    order = np.argsort(-sizes, kind="stable")
    names = np.full(count + 1, order[0])
    alone = order[:MOST_ON_A_SLICE]
    alone = alone[sizes[alone] >= SPECK]
    names[alone] = alone
    return np.asarray(names[spread(parts)])


def _mask_cells(net: Sam3Net) -> tuple[int, int]:
    """(4h, 4w) of the network's masks."""
    vision: Any = net.model.config.vision_config
    cells = 4 * (net.side // vision.backbone_config.patch_size)
    return cells, cells
