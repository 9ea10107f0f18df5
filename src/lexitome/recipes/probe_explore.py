"""The feature explorer of a probe: PNGs in `explore/` of a run. Needs torch; the plane of all images needs matplotlib.

patches-*      pictures, and their patches in the colours of the first three principal components
neighbours-*   test images, and the training images that are nearest to them
plane-*        test images in a plane, coloured by class
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lexitome.data.cache import CachedDataset
from lexitome.data.features import Features, Item
from lexitome.data.sources.classes import ClassifiedSet
from lexitome.evaluation.probing import pictures
from lexitome.evaluation.probing.neighbours import top
from lexitome.evaluation.probing.tables import EXPLORED
from lexitome.evaluation.probing.volumes import pooled
from lexitome.evaluation.report.figures import available

if TYPE_CHECKING:
    from lexitome.recipes.probe import Setting

SHOWN, QUERIES, NEAREST, MOST = 6, 5, 6, 1500
"""Pictures of a sheet of patches; rows and neighbours of a sheet of neighbours; images of a plane."""

Square = NDArray[np.float32]


def explore_classes(found: Features, data: ClassifiedSet, items: Sequence[Item], setting: Setting) -> None:
    """All three, for images with classes; what exists is not drawn again."""
    name = data.dataset.name
    item_of = {item.stem: item for item in items}
    stems = {part: [c.stem for c in data.dataset.cases if c.split == part] for part in ("train", "test")}
    shown = _spread(stems["test"], data, SHOWN)
    _patches([_middle(item_of[stem]) for stem in shown], name, setting)
    kind, rows = found.key.kinds[0], found.rows_of()
    bank, queries = (pooled(found.vector(kind), rows, stems[part], "mean") for part in ("train", "test"))
    place = _place("neighbours", name, setting)
    if len(stems["train"]) and len(stems["test"]) and not place.exists():
        asked = _spread(stems["test"], data, QUERIES)
        k = min(NEAREST, len(bank))
        near = top(bank, queries[[stems["test"].index(stem) for stem in asked]], k)[1]
        names = [[stems["train"][row] for row in line] for line in near]
        pictures.save_neighbours(
            [pictures.to_shown(_middle(item_of[stem])) for stem in asked],
            [[pictures.to_shown(_middle(item_of[stem])) for stem in line] for line in names],
            [[_alike(data, stem, near) for near in line] for stem, line in zip(asked, names, strict=True)],
            place,
        )
    place = _place("plane", name, setting)
    if available() and len(stems["test"]) > 3 and not place.exists():
        chosen = _spread(stems["test"], data, MOST)
        places, method = pictures.plane(queries[[stems["test"].index(stem) for stem in chosen]], setting.recipe.seed)
        labels = ["+".join(data.classes[i] for i in data.labels[stem]) or "none" for stem in chosen]
        title = f"{name}: test images, {setting.encoder.name} at {setting.side} ({kind}), {method}"
        pictures.save_plane(places, labels, title, place)


def explore_annotated(cached: CachedDataset, setting: Setting) -> None:
    """Patches in colours, of test pictures of different cases."""
    from lexitome.recipes.probe import cached_items

    rows = [i for i, row in enumerate(cached.rows) if row.split == "test" and row.present]
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int)] if rows else []
    items = cached_items(cached, setting)
    _patches([_middle(items[row]) for row in chosen], cached.dataset.name, setting)


def _alike(data: ClassifiedSet, stem: str, other: str) -> bool:
    """Whether two images share a class, or both have none."""
    mine, its = set(data.labels[stem]), set(data.labels[other])
    return bool(mine & its) or mine == its


def _patches(squares: Sequence[Square], name: str, setting: Setting) -> None:
    place = _place("patches", name, setting)
    if squares and not place.exists():
        maps = np.concatenate([setting.encode(square[None]).patches for square in squares])
        pictures.save_patch_map([pictures.to_shown(square) for square in squares], maps, place)


def _place(what: str, dataset: str, setting: Setting) -> Path:
    """Named by all that it depends on, so that a picture of other weights is drawn again."""
    return setting.out / EXPLORED / f"{what}-{setting.key(dataset, dense=False).folder}.png"


def _spread(stems: Sequence[str], data: ClassifiedSet, count: int) -> list[str]:
    """At most so many, the classes in turn."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for stem in stems:
        groups.setdefault(data.labels[stem], []).append(stem)
    turns = zip_longest(*groups.values())
    return [stem for turn in turns for stem in turn if stem is not None][:count]


def _middle(item: Item) -> Square:
    """The picture, or the middle slice."""
    slices = list(item.pictures())
    return slices[len(slices) // 2]
