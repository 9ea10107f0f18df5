"""Exact distances from many points to the nearest of many sites, quick also where they are far.

A k-d tree is quick for points near their site. From afar thousands of sites are at almost the same distance, and the
tree has to visit them all, for each point again: a speckled prediction has millions of those. So they are asked for in
boxes, which are divided until few sites are left that can be nearest to some point of the box. Which ones can is
decided by Voronoi cells, not by distances: site g is out if another one, h, is nearer to every point of the box. This
leaves about as many sites as the box would hold of a surface, however far they are, and those are compared with all
points at once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_DIRECT = 2**18
"""So many distances between the points of a box and sites are computed rather than avoided by dividing the box."""
_AT_ONCE = 2**15
"""Distances in memory at a time: they stay in the processor's cache, and the product is too small for the BLAS library
to call for more threads, which cases that are worked on side by side would only wait for."""
_BITS = 10
"""Boxes are halved along each axis at most so often."""
_SLACK = 128 * float(np.finfo(np.float32).eps)
"""More than rounding does to a difference of squared distances in single precision, as a share of the squared extent:
sums of some ten terms, none above twice that. It keeps a few sites too many and never one too few."""


def distances_to_nearest(points: Floats, sites: Floats, near: float) -> Floats:
    """(n,) from each of `points` (n, d) to the nearest of `sites` (m, d), m > 0.

    Args:
        near: a few times the distance between neighbouring sites. Longer distances come from matrix products, whose
            rounding is some 1e-15 extent^2 / near: no more than 1e-9 of a voxel in scans of 1000 voxels.
    """
    tree = cKDTree(sites, leafsize=32, balanced_tree=False, compact_nodes=False)
    distances = np.asarray(tree.query(points, distance_upper_bound=near)[0])
    far = np.flatnonzero(np.isinf(distances))
    if len(far):
        distances[far] = _far_distances(points[far], sites)
    return distances


def _far_distances(points: Floats, sites: Floats) -> Floats:
    places, targets = np.ascontiguousarray(points.T), np.ascontiguousarray(sites.T)
    low = np.minimum(places.min(axis=1), targets.min(axis=1))[:, None]
    places, targets = places - low, targets - low
    reach = float(max(places.max(), targets.max())) or 1.0
    codes = _along_curve(places / reach)
    order = np.argsort(codes)
    distances = np.empty(len(points))
    distances[order] = _Search(places.take(order, axis=1), codes[order], targets, _SLACK * reach**2).run()
    return distances


class _Search:
    """
    Args:
        points: (d, n), and sites: (d, m), none of them negative.
        codes: (n,) of the points, see `_along_curve`; ascending.
        slack: what rounding may do to a difference of squared distances.
    """

    def __init__(self, points: Floats, codes: NDArray[np.uint32], sites: Floats, slack: float) -> None:
        self._points, self._codes, self._sites, self._slack = points, codes, sites, slack
        self._squared = np.empty(len(codes))

    def run(self) -> Floats:
        """(n,) distances."""
        lifted = np.concatenate([self._sites, np.square(self._sites).sum(axis=0)[None]]).astype(np.float32)
        self._divide(slice(0, len(self._codes)), lifted, np.arange(lifted.shape[1]), len(self._sites) * _BITS)
        return np.sqrt(np.maximum(self._squared, 0))

    def _divide(self, part: slice, lifted: Singles, which: NDArray[np.int64], bits: int) -> None:
        """
        Args:
            part: the points of a box: those whose codes agree but for the last `bits` bits.
            lifted: (d + 1, k) places and squared norms of the sites that can be nearest to one of them.
            which: (k,) numbers of these sites.
        """
        points, codes = self._points[:, part], self._codes[part]
        low, high = points.min(axis=1), points.max(axis=1)
        kept = _can_be_nearest(low, high, lifted, self._slack)
        which = which[kept]
        if len(codes) * len(which) <= _DIRECT or not bits:
            self._squared[part] = _directly(points, self._sites.take(which, axis=1), (low + high) / 2)
            return
        lifted, bits = lifted.take(kept, axis=1), bits - len(self._sites)
        cuts = part.start + 1 + np.flatnonzero(np.diff(codes >> bits))
        for ends in pairwise([part.start, *cuts.tolist(), part.stop]):
            self._divide(slice(*ends), lifted, which, bits)


def _can_be_nearest(low: Floats, high: Floats, lifted: Singles, slack: float) -> NDArray[np.int64]:
    """Numbers of the sites that may be nearest to a point between `low` and `high`.

    With h the site nearest to the centre c, and e the way from c to a point, the point is by
    |c - g|^2 - |c - h|^2 - 2 e (g - h) farther from g, squared, than from h.
    """
    farther = _combined(np.array([*(-low - high), 1.0]), lifted)  # but for |c|^2
    best = int(farther.argmin())
    farther -= farther[best] + np.float32(slack)
    apart = np.abs(lifted[:-1] - lifted[:-1, best, None])
    return (farther <= _combined(high - low, apart)).nonzero()[0]


def _combined(weights: Floats, rows: NDArray[Any]) -> NDArray[Any]:
    """(k,) weighted sum of rows (r, k); not by BLAS, see `_AT_ONCE`."""
    return np.asarray(np.einsum("r,rk->k", weights.astype(rows.dtype), rows))


def _directly(points: Floats, sites: Floats, centre: Floats) -> Floats:
    """(n,) squared distances from points (d, n) to the nearest of sites (d, k), by matrix products. Seen from the
    centre of the points, since |p|^2 - 2 p s + |s|^2 would cancel elsewhere."""
    points, sites = points - centre[:, None], sites - centre[:, None]
    norms, least = _combined(np.ones(len(sites)), sites**2), _combined(np.ones(len(points)), points**2)
    left = np.concatenate([-2 * sites, norms[None]]).T
    right = np.concatenate([points, np.ones((1, points.shape[1]))])
    step = max(1, _AT_ONCE // len(left))
    for start in range(0, len(least), step):
        least[start : start + step] += (left @ right[:, start : start + step]).min(axis=0)
    return least


def _along_curve(places: Floats) -> NDArray[np.uint32]:
    """(n,) number of each place (d, n) of the unit cube on a curve that fills one box after the other (Morton, 1966):
    `_BITS` times for each halving, coarse to fine, one bit for each axis."""
    dims = len(places)
    steps = np.arange(2**_BITS, dtype=np.uint32)
    spread = np.zeros_like(steps)
    for bit in range(_BITS):
        spread |= (steps >> bit & 1) << dims * bit
    codes = np.zeros(places.shape[1], np.uint32)
    for axis, values in enumerate(places):
        codes |= spread[np.minimum(values * len(steps), len(steps) - 1).astype(np.intp)] << axis
    return codes
