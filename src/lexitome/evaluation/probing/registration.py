"""Registration of two subjects' pictures by nothing but frozen features: do patches of the same anatomy look alike?

Patches of two maps that are each other's nearest neighbour (cosine) are matched, an affine map is fitted to the matches
by RANSAC, and the moving picture's outlines are carried over. It stays affine, so that the score is of the features;
DINO-Reg (Song et al., MICCAI 2024) deforms densely by such features, which asks an optimiser as well. A fixed picture
is a test picture; moving ones are drawn from the training part, whichever the encoder, among those that show most of
what it shows. Needs torch and scikit-image.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome.data.cache import CachedDataset
from lexitome.data.features import Features
from lexitome.errors import InputError
from lexitome.evaluation.probing.neighbours import top
from lexitome.evaluation.probing.outlines import outline_scores, pixel_counts
from lexitome.evaluation.statistics import DRAWS

Floats = NDArray[np.floating]
Entry = dict[str, Any]


@dataclass(frozen=True)
class RegistrationConfig:
    """
    Args:
        pairs: moving pictures of each fixed one.
        rows: fixed pictures of a case at most, evenly spread (the slices of a volume).
        tolerance: of a match that agrees with the map, in patches.
        trials: of RANSAC.
        fewest: matches that have to agree; with fewer the picture stays as it lies.
        stretch: factor by which a map may change an area, or its inverse; others are not of two bodies.
    """

    pairs: int = 5
    rows: int = 8
    tolerance: float = 1.5
    trials: int = 500
    fewest: int = 6
    stretch: float = 3.0


def check_skimage() -> None:
    """
    Raises:
        InputError: scikit-image is not installed.
    """
    try:
        import skimage  # noqa: F401
    except ImportError as error:
        raise InputError("registration", "needs scikit-image", 'Type: pip install "lexitome[eval]"') from error


def probe(
    features: Features, cached: CachedDataset, pairs: Sequence[tuple[int, int]], config: RegistrationConfig, *,
    seed: int = 0, draws: int = DRAWS, advance: Callable[[], None] = lambda: None,
) -> Entry:  # fmt: skip
    """Carry outlines from training pictures to those of the test part.

    Args:
        features: with maps; their rows are those of `cached`.
        pairs: as `drawn_pairs`.
        advance: called after each pair.

    Returns:
        as `outlines.outline_scores`, of carried outlines; "before": the same "dice" of outlines as they lie, which does
        not depend on the encoder; "pairs"; "matched": the share of pairs with enough matches that agree.
    """
    assert features.patches is not None and len(features.stems) == len(cached.rows), "features of other pictures"
    after: dict[str, NDArray[np.float64]] = {}
    before: dict[str, NDArray[np.float64]] = {}
    matched = 0
    for fixed, moving in pairs:
        stem, codes = cached.rows[fixed].stem, np.asarray(cached.codes[moving])
        found = affine_between(features.patches[fixed], features.patches[moving], config, seed)
        matched += found is not None
        carried = codes if found is None else warped(codes, found)
        for counts, predicted in ((after, carried), (before, codes)):
            counts[stem] = counts.get(stem, 0) + pixel_counts(cached, fixed, predicted)
        advance()
    units = {row.stem: row.unit for row in cached.rows}
    lying = outline_scores(cached, before, units, seed=seed, draws=draws)
    return {
        **outline_scores(cached, after, units, seed=seed, draws=draws), "before": lying["dice"], "pairs": len(pairs),
        "matched": matched / len(pairs) if pairs else None,
    }  # fmt: skip


def drawn_pairs(cached: CachedDataset, config: RegistrationConfig, seed: int = 0) -> list[tuple[int, int]]:
    """Rows of fixed and moving pictures, cut along the same axis."""
    rows, pairs = cached.rows, []
    shown = {part: [i for i, row in enumerate(rows) if row.split == part and row.present] for part in ("train", "test")}
    for stem in dict.fromkeys(rows[i].stem for i in shown["test"]):
        own = [i for i in shown["test"] if rows[i].stem == stem]
        for fixed in [own[i] for i in np.linspace(0, len(own) - 1, min(config.rows, len(own))).round().astype(int)]:
            kind = (rows[fixed].axis, rows[fixed].unknown)
            known = [i for i in shown["train"] if (rows[i].axis, rows[i].unknown) == kind]
            unlike = np.array([len(set(rows[i].present) ^ set(rows[fixed].present)) for i in known])
            chance = np.random.default_rng((seed, fixed)).random(len(known))
            pairs += [(fixed, known[i]) for i in np.lexsort((chance, unlike))[: config.pairs]]
    return pairs


def affine_between(fixed: Floats, moving: Floats, config: RegistrationConfig, seed: int = 0) -> Floats | None:
    """(3, 3) from places in the fixed picture to places in the moving one, both (x, y) in sides of the square, from
    maps (h, w, D); None if too few matches agree."""
    from skimage.measure import ransac
    from skimage.transform import AffineTransform

    size = np.array(fixed.shape[1::-1])
    at_fixed, at_moving = ((place + 0.5) / size for place in mutual_matches(fixed, moving))
    if len(at_fixed) < config.fewest:
        return None

    def is_sane(model: Any, *_: Any) -> bool:
        area = np.linalg.det(model.params[:2, :2])
        return bool(1 / config.stretch < area < config.stretch)  # not mirrored either

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that no map fits, which the caller learns
        model, inside = ransac(
            (at_fixed, at_moving), AffineTransform, min_samples=3, residual_threshold=config.tolerance / size.mean(),
            max_trials=config.trials, is_model_valid=is_sane, rng=seed,
        )  # fmt: skip
    if model is None or inside is None or inside.sum() < config.fewest or not is_sane(model):
        return None
    return np.asarray(model.params, np.float64)


def mutual_matches(fixed: Floats, moving: Floats) -> tuple[Floats, Floats]:
    """Cells (n, 2) as (x, y) in each of two maps (h, w, D), whose patches are each other's nearest."""
    first, second = (each.reshape(-1, each.shape[-1]) for each in (fixed, moving))
    there, back = (top(bank, queries, 1)[1][:, 0] for bank, queries in ((second, first), (first, second)))
    own = np.flatnonzero(back[there] == np.arange(len(there)))
    rows = [np.divmod(cells, each.shape[1]) for cells, each in ((own, fixed), (there[own], moving))]
    one, other = (np.stack([x, y], 1).astype(np.float64) for y, x in rows)
    return one, other


def warped(codes: NDArray[np.integer], affine: Floats) -> NDArray[np.integer]:
    """The moving picture's codes (S, S) on the grid of the fixed one, nearest; 0 where it shows nothing."""
    side = len(codes)
    y, x = (np.indices(codes.shape) + 0.5) / side
    places = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    column, row = np.floor((affine @ places)[:2] * side).astype(int)
    seen = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    carried = np.zeros(codes.size, codes.dtype)
    carried[seen] = codes[row[seen], column[seen]]
    return carried.reshape(codes.shape)
