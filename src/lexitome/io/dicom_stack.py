"""From the planes of a series, in any order, to one regular stack: sorted, checked, and repaired only when asked.

Slices are sorted by their position along the normal, cross(row direction, column direction), so the voxel axes are
always right-handed. World frame: LPS+ mm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexitome.errors import InputError
from lexitome.io.checks import pick_frame
from lexitome.io.dicom_planes import Plane

SAME_PLACE = 0.01
"""Slices closer than this share of the usual gap are at the same place."""

EVEN = 0.01
"""Slices within this share of a gap from an even grid are even: positions are stored rounded."""

NEARLY_EVEN = 0.1
"""Slices within this share of a gap are taken as even, and the user is told."""

_SAME_DIRECTION = 1e-3
_SAME_SPACING = 1e-3
_USE_FIX = "Export the series again, or use --fix-slices"

SamePixels = Callable[[Plane, Plane], bool]


@dataclass(frozen=True, eq=False)
class Stack:
    """Planes in array order and where they lie.

    Args:
        planes: one for each z.
        affine: (4, 4) LPS+ mm; None where the spacing is unknown.
        notes: what was done to the series.
        uneven: (Z,) mm along the stack where the planes must be interpolated onto even gaps, else None.
        count: number of slices in the end.
    """

    planes: tuple[Plane, ...]
    affine: NDArray[np.float64] | None
    notes: tuple[str, ...] = ()
    uneven: NDArray[np.float64] | None = None
    count: int = 1


def stack_planes(
    path: Path, planes: list[Plane], *, frame: int | None, fix_slices: bool, same_pixels: SamePixels
) -> Stack:
    """Sorts and checks the planes of one series.

    Args:
        frame: 1-based choice where planes repeat at the same places, or have no place.
        fix_slices: whether exact duplicates may be dropped, strays left out and uneven gaps interpolated.
        same_pixels: compares two planes value by value.
    """
    planes, notes = _without_localizers(planes)
    planes, more = _alike(path, planes, fix_slices=fix_slices)
    notes += more
    if any(plane.position is None or plane.axes is None or plane.spacing is None for plane in planes):
        ordered = sorted(planes, key=lambda plane: plane.repeat)
        chosen = ordered[pick_frame(path, frame, len(ordered), "images without a place in space")]
        return Stack((chosen,), _affine_of_one(chosen), notes)
    planes, more = _without_copies(path, planes, fix_slices=fix_slices)
    notes += more
    groups = _by_place(planes)
    counts = Counter(len(group) for group in groups)
    if len(counts) == 1:
        repeats = next(iter(counts))
        what = f"images at each of {len(groups)} slice positions (echoes, time points or the like)"
        choice = pick_frame(path, frame, repeats, what if repeats > 1 else "volume")
        ordered = [group[choice] for group in groups]
    else:
        if frame is not None:
            pick_frame(path, frame, 1, "volume, with some slices twice")
        ordered, more = _first_of_duplicates(path, groups, fix_slices=fix_slices, same_pixels=same_pixels)
        notes += more
    stack = _regular(path, ordered, fix_slices=fix_slices)
    return replace(stack, notes=notes + stack.notes)


def _without_localizers(planes: list[Plane]) -> tuple[list[Plane], tuple[str, ...]]:
    kept = [plane for plane in planes if not plane.is_localizer]
    if not kept or len(kept) == len(planes):
        return planes, ()
    return kept, (f"{len(planes) - len(kept)} localizer (scout) images in the series were left out",)


def _alike(path: Path, planes: list[Plane], *, fix_slices: bool) -> tuple[list[Plane], tuple[str, ...]]:
    """All planes must share size, direction and spacing; otherwise the largest group is kept, if asked."""
    groups: list[list[Plane]] = []
    for plane in planes:
        group = next((group for group in groups if _is_alike(group[0], plane)), None)
        if group is None:
            groups.append([plane])
        else:
            group.append(plane)
    largest = max(groups, key=len)
    strays = len(planes) - len(largest)
    if not strays:
        return planes, ()
    sizes = sorted({f"{plane.shape[1]} x {plane.shape[0]}" for plane in planes})
    cause = f"{strays} of {len(planes)} slices differ from the others in size, direction or spacing"
    if not fix_slices:
        detail = f" ({', '.join(sizes)} pixels)" if len(sizes) > 1 else ""
        raise InputError(path, cause + detail, f"{_USE_FIX} to leave them out.")
    return largest, (f"{cause}: they were left out",)


def _is_alike(first: Plane, second: Plane) -> bool:
    if first.shape != second.shape or (first.spacing is None) != (second.spacing is None):
        return False
    if (first.position is None) != (second.position is None) or (first.axes is None) != (second.axes is None):
        return False
    if first.header.get("SamplesPerPixel", 1) != second.header.get("SamplesPerPixel", 1):
        return False
    if first.spacing is not None and not np.allclose(first.spacing, second.spacing or 0, rtol=_SAME_SPACING):
        return False
    return first.axes is None or second.axes is None or np.abs(first.axes - second.axes).max() < _SAME_DIRECTION


def _without_copies(path: Path, planes: list[Plane], *, fix_slices: bool) -> tuple[list[Plane], tuple[str, ...]]:
    """The same image twice (same SOP Instance UID and frame), as when a file was copied under another name."""
    kept = {(str(plane.header.get("SOPInstanceUID", plane.path)), plane.index): plane for plane in reversed(planes)}
    copies = len(planes) - len(kept)
    if not copies:
        return planes, ()
    if not fix_slices:
        cause = f"{copies} of {len(planes)} slices are copies of another (same SOP Instance UID)"
        raise InputError(path, cause, f"{_USE_FIX} to drop the copies.")
    return list(kept.values()), (f"{copies} copies of slices (same SOP Instance UID) were dropped",)


def _distance(plane: Plane, normal: NDArray[np.float64]) -> float:
    assert plane.position is not None
    return float(plane.position @ normal)


def _by_place(planes: list[Plane]) -> list[list[Plane]]:
    """Groups planes at the same distance along the normal, nearest first; within a group by echo, time and so on."""
    normal = planes[0].normal
    assert normal is not None
    ordered = sorted(planes, key=lambda plane: _distance(plane, normal))
    gaps = np.diff([_distance(plane, normal) for plane in ordered])
    steps = gaps[gaps > 1e-4]
    tolerance = max(SAME_PLACE * float(np.median(steps)), 1e-4) if len(steps) else np.inf
    groups = [[ordered[0]]]
    for plane, gap in zip(ordered[1:], gaps, strict=True):
        if gap > tolerance:
            groups.append([plane])
        else:
            groups[-1].append(plane)
    return [sorted(group, key=lambda plane: plane.repeat) for group in groups]


def _first_of_duplicates(
    path: Path, groups: list[list[Plane]], *, fix_slices: bool, same_pixels: SamePixels
) -> tuple[list[Plane], tuple[str, ...]]:
    doubled = [group for group in groups if len(group) > 1]
    extra = sum(len(group) - 1 for group in doubled)
    cause = f"{len(doubled)} of {len(groups)} slice positions hold more than one image"
    if not fix_slices:
        raise InputError(path, cause, f"{_USE_FIX} to drop exact duplicates.")
    if not all(same_pixels(group[0], other) for group in doubled for other in group[1:]):
        remedy = "Only exact duplicates can be dropped: export the series again without the extra images."
        raise InputError(path, f"{cause}, and they differ", remedy)
    return [group[0] for group in groups], (f"{extra} exact duplicates of slices were dropped",)


def _regular(path: Path, planes: list[Plane], *, fix_slices: bool) -> Stack:
    """Planes sorted along the normal, one at each place, to a stack with one affine."""
    if len(planes) == 1:
        return Stack(tuple(planes), _affine_of_one(planes[0]), _thickness_note(planes[0]))
    normal = planes[0].normal
    assert normal is not None
    positions = np.array([plane.position for plane in planes])
    offsets = positions @ normal - positions[0] @ normal
    gaps = np.diff(offsets)
    usual = float(np.median(gaps))
    sheer = positions[0] + np.outer(offsets / offsets[-1], positions[-1] - positions[0])
    sideways = float(np.linalg.norm(positions - sheer, axis=1).max())
    if sideways > NEARLY_EVEN * max(usual, max(planes[0].spacing or (0.0,))):
        cause = f"slices are shifted sideways by up to {sideways:.2f} mm from a straight stack"
        raise InputError(path, cause, "Export the series again as one straight stack.")
    even = np.linspace(0, offsets[-1], len(planes))
    deviation = float(np.abs(offsets - even).max())
    if deviation > NEARLY_EVEN * usual:
        return _interpolated(path, planes, offsets, fix_slices=fix_slices)
    notes: tuple[str, ...] = ()
    if deviation > EVEN * usual:
        notes = (f"slice positions deviate by up to {deviation:.3f} mm from even gaps: taken as even",)
    return Stack(tuple(planes), _affine(planes, len(planes)), notes, count=len(planes))


def _interpolated(path: Path, planes: list[Plane], offsets: NDArray[np.float64], *, fix_slices: bool) -> Stack:
    """Refuses uneven gaps, or plans an even grid from the first slice to the last."""
    gaps = np.diff(offsets)
    usual = float(np.median(gaps))
    missing = int(np.rint(gaps / usual).sum()) - len(gaps)
    worst = int(np.argmax(np.abs(gaps - usual)))
    cause = f"slice gaps are uneven ({gaps.min():.3f} to {gaps.max():.3f} mm, usually {usual:.3f})"
    if missing > 0 and np.abs(gaps - np.rint(gaps / usual) * usual).max() < NEARLY_EVEN * usual:
        cause = (
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing (gaps of {usual:.3f} mm, but {gaps.max():.3f})"
        )
    cause += f", first after slice {worst + 1} of {len(planes)}"
    if not fix_slices:
        raise InputError(path, cause, f"{_USE_FIX} to interpolate onto even gaps.")
    count = int(np.rint(offsets[-1] / usual)) + 1
    note = f"{cause}: all slices were interpolated onto {count} even ones"
    return Stack(tuple(planes), _affine(planes, count), (note,), uneven=offsets, count=count)


def _affine(planes: list[Plane], count: int) -> NDArray[np.float64]:
    """LPS+; z runs from the first plane to the last in `count` slices, along the line between their positions."""
    first, last = planes[0], planes[-1]
    assert first.position is not None and last.position is not None
    affine = _plane_affine(first)
    affine[:3, 2] = (last.position - first.position) / (count - 1)
    return affine


def _affine_of_one(plane: Plane) -> NDArray[np.float64] | None:
    """LPS+ of a single slice; None where the spacing is unknown."""
    return None if plane.spacing is None else _plane_affine(plane)


def _plane_affine(plane: Plane) -> NDArray[np.float64]:
    assert plane.spacing is not None
    affine = np.eye(4)
    axes = np.eye(3)[:2] if plane.axes is None else plane.axes
    affine[:3, 0] = axes[0] * plane.spacing[0]
    affine[:3, 1] = axes[1] * plane.spacing[1]
    normal = np.cross(axes[0], axes[1])
    affine[:3, 2] = normal / np.linalg.norm(normal) * (plane.thickness or 1.0)
    if plane.position is not None:
        affine[:3, 3] = plane.position
    return affine


def _thickness_note(plane: Plane) -> tuple[str, ...]:
    if plane.thickness is not None:
        return ()
    return ("the header gives no slice thickness: 1 mm was assumed",)
