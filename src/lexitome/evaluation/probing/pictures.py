"""A look at features: patches coloured by what they have in common, pictures in a plane, and what is nearest to what.

Pictures are PNG by Pillow. The plane is UMAP's if umap-learn is installed, else t-SNE's of scikit-learn, and drawn by
matplotlib (the extra lexitome[eval]).
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lexitome.evaluation.probing.linear import check_sklearn
from lexitome.io.atomic import replacing

TILE, GAP = 224, 6
_PAPER = (255, 255, 255)
_RIGHT, _WRONG = (0, 158, 115), (213, 94, 0)
"""Okabe and Ito's green and vermilion, as in the plots of reports."""

Floats = NDArray[np.floating]
Picture = NDArray[np.uint8]
Plane = Literal["umap", "t-SNE"]


def patch_colours(patches: Floats) -> NDArray[np.uint8]:
    """(N, h, w, D) maps to (N, h, w, 3): the first three principal components of the patches of all pictures together
    as red, green and blue, each from its 2nd to its 98th percentile."""
    flat = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    centred = flat - flat.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, np.argsort(values)[::-1][:3]]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])  # else the sign is a toss
    parts = centred @ axes
    low, high = np.percentile(parts, (2, 98), axis=0)
    shown = np.clip((parts - low) / np.maximum(high - low, 1e-12), 0, 1)
    shown = np.pad(shown, ((0, 0), (0, 3 - shown.shape[1])))
    return (255 * shown).round().astype(np.uint8).reshape(*patches.shape[:3], 3)


def save_patch_map(pictures: Sequence[Picture], patches: Floats, path: Path) -> None:
    """A sheet: above the pictures (H, W, 3), below their patches in colours, each patch a square."""
    colours = patch_colours(patches)
    sheet = _sheet(len(pictures), 2)
    for column, (picture, colour) in enumerate(zip(pictures, colours, strict=True)):
        sheet.paste(_tile(picture), _place(column, 0))
        sheet.paste(Image.fromarray(colour).resize((TILE, TILE), Image.Resampling.NEAREST), _place(column, 1))
    _save(sheet, path)


def save_neighbours(
    queries: Sequence[Picture], found: Sequence[Sequence[Picture]], right: Sequence[Sequence[bool]], path: Path
) -> None:
    """A sheet: in each row a picture, then its neighbours, framed green where they are of its class."""
    sheet = _sheet(1 + max(map(len, found)), len(queries))
    for row, (query, near, same) in enumerate(zip(queries, found, right, strict=True)):
        sheet.paste(_tile(query), _place(0, row))
        for column, (picture, is_right) in enumerate(zip(near, same, strict=True), start=1):
            x, y = _place(column, row)
            sheet.paste(_tile(picture), (x, y))
            frame = (x, y, x + TILE - 1, y + TILE - 1)
            ImageDraw.Draw(sheet).rectangle(frame, outline=_RIGHT if is_right else _WRONG, width=5)
    _save(sheet, path)


def plane(features: Floats, seed: int = 0) -> tuple[NDArray[np.float32], Plane]:
    """(N, 2) places where what is similar lies together, and by which method. Only neighbourhoods mean something: not
    distances, sizes of groups, or axes.

    Raises:
        InputError: neither umap-learn nor scikit-learn is installed.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    if importlib.util.find_spec("umap") is not None:
        umap = importlib.import_module("umap")
        return np.asarray(umap.UMAP(metric="cosine", random_state=seed).fit_transform(unit), np.float32), "umap"
    check_sklearn()
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.0, (len(unit) - 1) / 3))
    found = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit.astype(np.float32))
    return np.asarray(found, np.float32), "t-SNE"


def save_plane(places: Floats, classes: Sequence[str], title: str, path: Path) -> None:
    """A scatter plot, a colour for each class."""
    from matplotlib.figure import Figure

    from lexitome.evaluation.report.figures import SERIES, THEME

    figure = Figure(figsize=(6, 5), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for index, name in enumerate(sorted(set(classes))):
        mine = np.array([each == name for each in classes])
        colour, marker = SERIES[index % len(SERIES)], "os^v"[index // len(SERIES) % 4]
        x, y = places[mine].T
        axes.scatter(x, y, s=9, color=colour, marker=marker, label=name, linewidths=0, alpha=0.8)
    axes.set(xticks=(), yticks=())
    axes.set_title(title, fontsize=9, color=THEME["ink"])
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=110, metadata={"Software": None})
    with replacing(path) as temporary:
        temporary.write_bytes(written.getvalue())


def to_shown(square: Floats) -> Picture:
    """(3, S, S) input of an encoder, in any scale, to (S, S, 3) to be looked at."""
    low, high = float(square.min()), float(square.max())
    return np.moveaxis((255 * (square - low) / max(high - low, 1e-12)).round().astype(np.uint8), 0, -1)


def _sheet(columns: int, rows: int) -> Image.Image:
    return Image.new("RGB", (columns * (TILE + GAP) + GAP, rows * (TILE + GAP) + GAP), _PAPER)


def _place(column: int, row: int) -> tuple[int, int]:
    return GAP + column * (TILE + GAP), GAP + row * (TILE + GAP)


def _tile(picture: Picture) -> Image.Image:
    return Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BICUBIC)


def _save(sheet: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
