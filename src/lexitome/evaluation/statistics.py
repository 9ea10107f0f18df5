"""Means with intervals, and tests of paired differences, where cases of one subject are not independent.

What is resampled is always the *unit* (subject, video, section) with all its values, never a single case. Of several
datasets, units are resampled within each, and the datasets are fixed: an interval says how far the mean would move with
other subjects of the same datasets, and nothing about other datasets. Definitions are in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

DRAWS, FLIPS, LEVEL = 2000, 10_000, 0.95
EXACT_UNITS = 13
"""Up to so many units all 2^units sign patterns are enumerated."""
CHUNK = 2**18
"""Numbers drawn at once: bounds the memory, whatever the number of units."""

Floats = NDArray[np.float64]
ByUnit = Mapping[str, Sequence[float] | Floats]
"""The values of the cases of each unit."""


@dataclass(frozen=True)
class Interval:
    """A mean over cases and its interval; `low` and `high` are None where a single unit leaves nothing to resample."""

    mean: float
    low: float | None
    high: float | None
    units: int
    cases: int


@dataclass(frozen=True)
class PairedTest:
    """The mean difference a - b over the same cases.

    Args:
        p: two-sided: how often the difference would be at least as far from zero if, for each unit, it were a toss of a
            coin which of its two results is called a and which b.
        effect_size: Cohen's dz: mean over standard deviation (n - 1) of the units' contributions to the difference,
            see `contributions`; None with one unit, without spread, and over several datasets.
        low, high: interval of the difference, units resampled.
    """

    difference: float
    p: float
    effect_size: float | None
    units: int
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class Stratum:
    """The units of one dataset: (units, columns) sums of values and counts of them, a column for each metric."""

    sums: Floats
    counts: Floats

    @staticmethod
    def of(values: Floats, units: NDArray[np.integer]) -> Stratum:
        """From (cases, columns) values, NaN for none, and the (cases,) unit of each case."""
        _, codes = np.unique(units, return_inverse=True)
        sums, counts = np.zeros((2, int(codes.max(initial=-1)) + 1, values.shape[1]))
        given = np.isfinite(values)
        np.add.at(sums, codes, np.where(given, values, 0.0))
        np.add.at(counts, codes, given.astype(np.float64))
        return Stratum(sums, counts)

    @staticmethod
    def from_units(by_unit: ByUnit) -> Stratum:
        """One column; units in the order of their names, so that results do not depend on the order of files."""
        named = [np.asarray(by_unit[name], dtype=np.float64) for name in sorted(by_unit)]
        values = np.concatenate([*named, np.empty(0)])
        if not values.size or not np.isfinite(values).all():
            raise ValueError("a mean needs values, and all of them finite")
        return Stratum.of(values[:, None], np.repeat(np.arange(len(named)), [len(unit) for unit in named]))

    @property
    def units(self) -> NDArray[np.int64]:
        """(columns,) number of units with a value."""
        return (self.counts > 0).sum(axis=0)

    @property
    def means(self) -> Floats:
        """(columns,) means over cases, NaN where there is none."""
        return ratio(self.sums.sum(axis=0), self.counts.sum(axis=0))


def bootstrap_mean(values_by_unit: ByUnit, *, seed: int, draws: int = DRAWS, level: float = LEVEL) -> Interval:
    """Mean over all cases of one dataset. Units are drawn with replacement, each with all its cases.

    Raises:
        ValueError: there is no value, or one that is not finite.
    """
    return stratified_mean({"": values_by_unit}, seed=seed, draws=draws, level=level)


def stratified_mean(values: Mapping[str, ByUnit], *, seed: int, draws: int = DRAWS, level: float = LEVEL) -> Interval:
    """Means over the cases of each dataset, then over datasets, each of which counts the same.

    Units are drawn with replacement within each dataset; the datasets are fixed. A dataset of a single unit counts for
    the mean and adds nothing to the width of the interval.

    Args:
        values: dataset to unit to values.

    Raises:
        ValueError: there is no dataset, or one of them has no value, or one that is not finite.
    """
    strata = [Stratum.from_units(values[name]) for name in sorted(values)]
    found = mean_intervals(strata, seed=seed, draws=draws, level=level)[0] if strata else None
    if found is None:
        raise ValueError("a mean needs values")
    return found


def mean_intervals(
    strata: Sequence[Stratum], *, seed: int, draws: int = DRAWS, level: float = LEVEL
) -> list[Interval | None]:
    """`stratified_mean` of each column of several; None for a column without values.

    The draws of a column depend on the seed and on the numbers of its units only: the interval of a metric is the same
    whichever other metrics stand beside it.
    """
    drawn = np.stack([_drawn_means(stratum, draws, (seed, i)) for i, stratum in enumerate(strata)])
    means = np.stack([stratum.means for stratum in strata])
    units = np.stack([stratum.units for stratum in strata])
    cases = sum(stratum.counts.sum(axis=0) for stratum in strata)
    found: list[Interval | None] = []
    for k in range(means.shape[1]):
        held = np.flatnonzero(units[:, k])
        if not held.size:
            found.append(None)
            continue
        low, high = percentiles(drawn[held, :, k], units[held, k], level)
        total = int(units[:, k].sum())
        found.append(Interval(float(means[held, k].mean()), low, high, total, int(np.asarray(cases)[k])))
    return found


def mean_of_columns(
    strata: Sequence[Stratum], *, seed: int, draws: int = DRAWS, level: float = LEVEL
) -> Interval | None:
    """Mean over the columns of all strata of their means over cases: with a column for each concept, every concept of
    every dataset counts the same, however many cases show it. None without a column.

    Units are drawn with replacement within each dataset, with all their cases of all columns. A column that none of the
    units drawn has a value of is left out of that draw.

    Args:
        strata: the datasets; each column has a value of some unit, each unit one in some column.
    """
    strata = [stratum for stratum in strata if stratum.sums.size]
    if not strata:
        return None
    widths = np.array([stratum.sums.shape[1] for stratum in strata])
    drawn = np.empty((len(strata), draws))
    for i, stratum in enumerate(strata):
        for part, weights in resampled(len(stratum.sums), draws, (seed, i), width=2 * int(widths[i])):
            drawn[i, part] = np.nanmean(ratio(weights @ stratum.sums, weights @ stratum.counts), axis=1)
    shares = widths / widths.mean()  # `percentiles` averages over strata, which here weigh as many columns as they have
    units = np.array([len(stratum.sums) for stratum in strata])
    low, high = percentiles(drawn * shares[:, None], units, level)
    mean = float(np.concatenate([stratum.means for stratum in strata]).mean())
    cases = int(sum(stratum.counts.sum() for stratum in strata))
    return Interval(mean, low, high, int(units.sum()), cases)


def percentiles(drawn: Floats, units: NDArray[np.integer], level: float) -> tuple[float | None, float | None]:
    """Ends of the interval of the mean over datasets, from (datasets, draws) drawn means: expanded percentiles
    (Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015, section 4.1.3).

    Plain percentiles are too narrow for few units: the draws vary as the variance with n instead of n - 1 does, and as
    the normal instead of the t distribution. So the shares cut off are Phi(-sqrt(n / (n - 1)) t), t being the quantile
    of Student's distribution with n - 1 degrees of freedom; over datasets, those of Welch and Satterthwaite. Draws that
    leave a statistic without a value (NaN: no negative case drawn) do not count.
    """
    many, drawn = units > 1, drawn[:, np.isfinite(drawn).all(axis=0)]
    if not many.any() or not drawn.size:
        return None, None
    means = drawn.mean(axis=0)
    plain = drawn[many].var(axis=1)
    if not plain.any():
        return float(means[0]), float(means[0])
    plain = plain / plain.max()  # only their relations count, and squares of tiny ones would vanish
    unbiased = plain * (units[many] / (units[many] - 1))
    freedom = unbiased.sum() ** 2 / (unbiased**2 / (units[many] - 1)).sum()
    reach = np.sqrt(unbiased.sum() / plain.sum()) * stats.t.ppf((1 + level) / 2, freedom)
    tail = float(stats.norm.cdf(-reach))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def resampled(units: int, draws: int, seed: tuple[int, ...], *, width: int = 0) -> Iterator[tuple[slice, Floats]]:
    """`resampled_strata` of one stratum."""
    return resampled_strata([units], draws, seed, width=width)


def resampled_strata(
    strata: Sequence[int], draws: int, seed: tuple[int, ...], *, width: int = 0
) -> Iterator[tuple[slice, Floats]]:
    """How often each unit is drawn when, within each stratum, as many are drawn with replacement as there are.

    Args:
        strata: number of units of each.
        width: numbers that the caller holds for each draw; bounds how many draws come at a time.

    Yields:
        Which of the draws, and their (these draws, units of all strata) multinomial weights.
    """
    rng = np.random.default_rng(seed)
    units = sum(strata)
    step = max(1, CHUNK // max(units, width, 1))
    for start in range(0, draws, step):
        count, begin, parts = min(step, draws - start), 0, []
        for size in strata:
            parts.append(rng.integers(begin, begin + size, size=(count, size), dtype=np.int32))
            begin += size
        index = np.concatenate(parts, axis=1) + np.arange(count)[:, None] * units
        weights = np.bincount(index.ravel(), minlength=count * units).reshape(count, units)
        yield slice(start, start + count), weights.astype(np.float64)


def _drawn_means(stratum: Stratum, draws: int, seed: tuple[int, ...]) -> Floats:
    """(draws, columns) means over the cases of the units drawn. A column is drawn from the units that have values."""
    means = np.full((draws, stratum.sums.shape[1]), np.nan)
    patterns, which = np.unique(stratum.counts.T > 0, axis=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        columns, held = np.flatnonzero(which.ravel() == i), np.flatnonzero(pattern)
        if held.size:
            sums, counts = (part[np.ix_(held, columns)] for part in (stratum.sums, stratum.counts))
            for rows, weights in resampled(held.size, draws, seed):
                means[rows, columns] = (weights @ sums) / (weights @ counts)
    return means


def ratio(top: Floats, bottom: Floats) -> Floats:
    """NaN where the denominator is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def paired_permutation(a_by_unit: ByUnit, b_by_unit: ByUnit, *, seed: int, draws: int = FLIPS) -> PairedTest:
    """Test of a - b in one dataset: the signs of whole units' differences are flipped (all patterns for up to
    `EXACT_UNITS` units, else `draws` random ones, the observed one counted among them, so that p is never 0).

    Args:
        a_by_unit, b_by_unit: the same units, and in each unit the same cases in the same order.

    Raises:
        ValueError: they do not fit together, are empty, or hold a value that is not finite.
    """
    return stratified_permutation({"": a_by_unit}, {"": b_by_unit}, seed=seed, draws=draws)


def stratified_permutation(
    a: Mapping[str, ByUnit], b: Mapping[str, ByUnit], *, seed: int, draws: int = FLIPS
) -> PairedTest:
    """Test of the mean over datasets of the mean differences a - b, each dataset counting the same. Signs of units are
    flipped in all datasets; the interval resamples units within each dataset."""
    differences = {name: _differences(a[name], b.get(name, {})) for name in a}
    if set(a) != set(b):
        raise ValueError("the two runs have other datasets")
    interval = stratified_mean(differences, seed=seed)
    parts = contributions([Stratum.from_units(differences[name]) for name in sorted(differences)])
    p = _sign_flip_p(parts, seed, draws)
    effect = _effect_size(parts) if len(differences) == 1 else None
    return PairedTest(interval.mean, p, effect, interval.units, interval.low, interval.high)


def contributions(strata: Sequence[Stratum]) -> Floats:
    """(units,) what each unit adds to the mean of the first column, over datasets; their sum is that mean. Where all
    units have as many cases, in one dataset, the unit's own mean divided by the number of units."""
    parts = [stratum.sums[:, 0] / (stratum.counts[:, 0].sum() * len(strata)) for stratum in strata]
    return np.concatenate(parts)


def _differences(a: ByUnit, b: ByUnit) -> dict[str, Floats]:
    if set(a) != set(b) or any(len(a[unit]) != len(b[unit]) for unit in a):
        raise ValueError("the two runs have other units or cases")
    return {unit: np.asarray(a[unit], dtype=np.float64) - np.asarray(b[unit], dtype=np.float64) for unit in a}


def _sign_flip_p(parts: Floats, seed: int, draws: int) -> float:
    """Two-sided; ties count as at least as far (within rounding). Random patterns: (1 + hits) / (1 + draws), Phipson
    and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39."""
    far = abs(parts.sum()) - 1e-12 * np.abs(parts).sum()
    if len(parts) <= EXACT_UNITS:
        patterns = np.arange(2 ** len(parts))[:, None] >> np.arange(len(parts)) & 1
        return float((np.abs((1 - 2 * patterns) @ parts) >= far).mean())
    rng, hits, step = np.random.default_rng(seed), 0, max(1, CHUNK // len(parts))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        packed = np.frombuffer(rng.bytes(count * -(-len(parts) // 8)), dtype=np.uint8).reshape(count, -1)
        minus = np.unpackbits(packed, axis=1, count=len(parts)).astype(np.float64)
        hits += int((np.abs(parts.sum() - 2 * (minus @ parts)) >= far).sum())
    return (1 + hits) / (1 + draws)


def _effect_size(parts: Floats) -> float | None:
    if not parts.any():
        return 0.0
    spread = float(parts.std(ddof=1)) if len(parts) > 1 else 0.0
    mean = float(parts.mean())
    return mean / spread if spread > 1e-12 * abs(mean) else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order (Holm, Scand. J. Statist. 6 (1979) 65): whoever rejects those below 0.05 has
    a chance of at most 5 % of rejecting any true hypothesis of the family, dependent or not."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()
