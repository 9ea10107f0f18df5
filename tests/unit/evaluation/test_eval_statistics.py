"""Means, intervals and paired tests: closed forms, SciPy's own, brute force, and what they promise in simulations."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lexitome.evaluation.statistics import (
    Stratum,
    bootstrap_mean,
    contributions,
    holm,
    mean_intervals,
    mean_of_columns,
    paired_permutation,
    percentiles,
    resampled_strata,
    stratified_mean,
    stratified_permutation,
)

numbers = st.floats(-10, 10, allow_subnormal=False)
by_unit = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.lists(numbers, min_size=1, max_size=4), min_size=2
)


def clustered(rng: np.random.Generator, units: int, mean: float = 0.0) -> dict[str, np.ndarray]:
    """Values of 1 to 6 cases of each unit, much more alike within units than between."""
    return {
        f"s{i:03}": mean + rng.normal(0, 1) + rng.normal(0, 0.2, int(size))
        for i, size in enumerate(rng.integers(1, 7, units))
    }


def test_interval_of_independent_cases_is_students() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.1, 40)
    found = bootstrap_mean({str(i): [v] for i, v in enumerate(values)}, seed=0, draws=20_000)
    low, high = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert found.mean == pytest.approx(values.mean()) and (found.units, found.cases) == (40, 40)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_interval_is_scipys_at_the_expanded_level() -> None:
    data = clustered(np.random.default_rng(2), 15)
    sums, counts = (np.array([of(v) for v in data.values()]) for of in (np.sum, len))
    tail = stats.norm.cdf(-math.sqrt(15 / 14) * stats.t.ppf(0.975, 14))
    theirs = stats.bootstrap(
        (sums, counts), lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis), paired=True, vectorized=True,
        n_resamples=40_000, method="percentile", confidence_level=1 - 2 * tail, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    ours = bootstrap_mean(data, seed=0, draws=40_000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


@settings(deadline=None, max_examples=20)
@given(by_unit, st.integers(1, 5))
def test_repeating_every_case_of_a_subject_adds_no_certainty(data: dict[str, list[float]], times: int) -> None:
    once = bootstrap_mean(data, seed=3, draws=200)
    often = bootstrap_mean({unit: values * times for unit, values in data.items()}, seed=3, draws=200)
    assert (often.mean, often.low, often.high) == pytest.approx((once.mean, once.low, once.high), abs=1e-9)
    assert often.units == once.units and often.cases == times * once.cases


@settings(deadline=None, max_examples=20)
@given(by_unit)
def test_bounds_order_and_repeatability(data: dict[str, list[float]]) -> None:
    found = bootstrap_mean(data, seed=0, draws=200)
    every = [value for values in data.values() for value in values]
    assert found.low is not None and found.high is not None
    assert min(every) - 1e-9 <= found.low <= found.high <= max(every) + 1e-9
    assert found.mean == pytest.approx(np.mean(every), abs=1e-12)
    assert bootstrap_mean(dict(reversed(data.items())), seed=0, draws=200) == found


def test_one_subject_has_no_interval_and_no_values_no_mean() -> None:
    found = bootstrap_mean({"a": [0.2, 0.4]}, seed=0)
    assert (found.mean, found.low, found.high) == (pytest.approx(0.3), None, None)
    for empty in ({}, {"a": []}, {"a": [0.5, math.nan]}, {"a": [math.inf]}):
        with pytest.raises(ValueError, match="values"):
            bootstrap_mean(empty, seed=0)
    with pytest.raises(ValueError, match="values"):
        stratified_mean({}, seed=0)


def test_mean_over_datasets_counts_each_dataset_once() -> None:
    rng = np.random.default_rng(4)
    large, small = rng.normal(0, 1, 900), rng.normal(10, 1, 36)
    data = {name: {str(i): [v] for i, v in enumerate(values)} for name, values in (("large", large), ("small", small))}
    found = stratified_mean(data, seed=0, draws=10_000)
    assert found.mean == pytest.approx((large.mean() + small.mean()) / 2) and found.units == found.cases == 936
    # The variance of the mean of two independent means; degrees of freedom after Welch and Satterthwaite.
    parts = np.array([large.var(ddof=1) / 900, small.var(ddof=1) / 36])
    freedom = parts.sum() ** 2 / (parts**2 / [899, 35]).sum()
    half = stats.t.ppf(0.975, freedom) * math.sqrt(parts.sum()) / 2
    assert found.high is not None and found.low is not None
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_dataset_of_one_subject_adds_to_the_mean_only() -> None:
    data = clustered(np.random.default_rng(5), 20)
    alone, joined = bootstrap_mean(data, seed=0), stratified_mean({"a": data, "b": {"x": [4.0]}}, seed=0)
    assert joined.mean == pytest.approx((alone.mean + 4) / 2)
    assert (joined.low, joined.high) == pytest.approx(((alone.low + 4) / 2, (alone.high + 4) / 2))


def test_interval_of_a_metric_ignores_the_others() -> None:
    rng = np.random.default_rng(6)
    values, units = rng.random((60, 3)), np.arange(60) // 3
    values[units > 12, 1] = np.nan
    values[:, 2] = np.nan
    alone = [mean_intervals([Stratum.of(values[:, [k]], units)], seed=1)[0] for k in range(3)]
    assert mean_intervals([Stratum.of(values, units)], seed=1) == alone
    assert alone[2] is None and alone[1] is not None and alone[1].units == 13
    by_hand = {f"{u:02}": values[units == u, 0] for u in range(20)}
    assert alone[0] == bootstrap_mean(by_hand, seed=1)


def test_weights_are_multinomial_within_each_stratum() -> None:
    weights = np.concatenate([w for _, w in resampled_strata([5, 3], 20_000, (0,), width=1000)])
    assert (weights[:, :5].sum(axis=1) == 5).all() and (weights[:, 5:].sum(axis=1) == 3).all()
    wanted = np.zeros((8, 8))
    for start, n in ((0, 5), (5, 3)):
        wanted[start : start + n, start : start + n] = n * (np.eye(n) / n - 1 / n**2)
    assert np.abs(np.cov(weights.T) - wanted).max() < 0.03
    assert np.abs(weights.mean(axis=0) - 1).max() < 0.03


def test_percentiles_skip_draws_without_a_value() -> None:
    drawn = np.array([[0.1, np.nan, 0.3, 0.2]])
    assert percentiles(drawn, np.array([50]), 0.5) == percentiles(drawn[:, [0, 2, 3]], np.array([50]), 0.5)
    assert percentiles(np.full((1, 4), np.nan), np.array([5]), 0.95) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("units", [8, 30])
def test_interval_covers_the_truth_as_often_as_it_says(units: int) -> None:
    """And one that takes cases for independent does not."""
    rng, runs = np.random.default_rng(7), 600
    hits, naive = 0, 0
    for run in range(runs):
        data = clustered(rng, units, mean=2.0)
        found = bootstrap_mean(data, seed=run, draws=600)
        hits += found.low <= 2.0 <= found.high
        cases = np.concatenate(list(data.values()))
        reach = 1.96 * cases.std(ddof=1) / math.sqrt(len(cases))
        naive += abs(cases.mean() - 2.0) <= reach
    assert 0.925 <= hits / runs <= 0.985
    assert naive / runs < 0.85


@pytest.mark.slow
def test_interval_over_datasets_covers_the_mean_of_their_truths() -> None:
    rng, runs, hits = np.random.default_rng(8), 500, 0
    for run in range(runs):
        data = {
            name: clustered(rng, units, mean) for name, units, mean in (("a", 6, 0.0), ("b", 12, 3.0), ("c", 40, 1.0))
        }
        found = stratified_mean(data, seed=run, draws=600)
        hits += found.low <= 4 / 3 <= found.high
    assert 0.92 <= hits / runs <= 0.985


eighths = st.integers(-80, 80).map(lambda number: number / 8)  # sums of such are exact, so that ties are ties


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(eighths, eighths), min_size=2, max_size=9))
def test_exact_p_is_scipys(pairs: list[tuple[float, float]]) -> None:
    a, b = ({f"{i:02}": [pair[side]] for i, pair in enumerate(pairs)} for side in (0, 1))
    found = paired_permutation(a, b, seed=0)
    theirs = stats.permutation_test(
        tuple(np.array(pairs).T), lambda x, y, axis: (x - y).mean(axis=axis), vectorized=True,
        permutation_type="samples", n_resamples=np.inf,
    )  # fmt: skip
    assert found.difference == pytest.approx(theirs.statistic, abs=1e-12)
    # SciPy doubles the smaller tail, which counts zeros twice.
    assert found.p == pytest.approx(min(theirs.pvalue, 1.0), abs=1e-12) or theirs.statistic == 0


def test_differences_too_small_to_be_squared_have_an_interval() -> None:
    found = paired_permutation({"a": [0.0], "b": [0.0]}, {"a": [0.0], "b": [1.7e-112]}, seed=0)
    assert found.low is not None and found.high is not None and found.low <= found.difference <= found.high


def test_exact_p_flips_whole_subjects() -> None:
    rng = np.random.default_rng(9)
    a, b = clustered(rng, 7, 0.4), {}
    b = {unit: rng.normal(0, 1, len(values)) for unit, values in a.items()}
    sums = np.array([(a[unit] - b[unit]).sum() for unit in a])
    cases = sum(map(len, a.values()))
    flipped = [abs(np.dot(signs, sums)) / cases for signs in itertools.product((1, -1), repeat=7)]
    found = paired_permutation(a, b, seed=0)
    assert found.difference == pytest.approx(sums.sum() / cases)
    assert found.p == pytest.approx(np.mean(np.array(flipped) >= abs(found.difference) - 1e-12))


def test_random_flips_agree_with_all_of_them() -> None:
    rng = np.random.default_rng(10)
    a = {f"{i:02}": rng.normal(0.35, 1, 2) for i in range(16)}
    zero = {unit: np.zeros(2) for unit in a}
    sums = np.array([values.sum() for values in a.values()])
    patterns = np.arange(2**16)[:, None] >> np.arange(16) & 1
    exact = (np.abs((1 - 2 * patterns) @ sums) >= abs(sums.sum()) - 1e-12).mean()
    found = paired_permutation(a, zero, seed=0, draws=40_000)
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 40_000))
    assert paired_permutation(a, zero, seed=0, draws=500).p >= 1 / 501


def test_effect_size_is_cohens_dz() -> None:
    a, b = [0.9, 0.8, 0.7, 0.9], [0.6, 0.7, 0.6, 0.5]
    found = paired_permutation({str(i): [v] for i, v in enumerate(a)}, {str(i): [v] for i, v in enumerate(b)}, seed=0)
    gaps = np.subtract(a, b)
    assert found.effect_size == pytest.approx(gaps.mean() / gaps.std(ddof=1))
    assert found.p == 2 / 16 and found.units == 4  # all four point one way: only the two uniform patterns are as far


def test_equal_runs_and_constant_differences() -> None:
    a = {"x": [0.5, 0.6], "y": [0.7]}
    same = paired_permutation(a, a, seed=0)
    assert (same.difference, same.p, same.effect_size, same.low, same.high) == (0, 1, 0, 0, 0)
    shifted = paired_permutation({"x": [0.6], "y": [0.8]}, {"x": [0.5], "y": [0.7]}, seed=0)
    assert shifted.effect_size is None and shifted.p == 1 / 2
    lone = paired_permutation({"x": [0.6]}, {"x": [0.5]}, seed=0)
    assert (lone.p, lone.effect_size, lone.low, lone.high) == (1, None, None, None)


@pytest.mark.parametrize("b", [{"x": [0.1]}, {"x": [0.1], "y": [0.1, 0.2]}, {"x": [0.1], "z": [0.1]}])
def test_runs_that_do_not_fit_are_refused(b: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="other"):
        paired_permutation({"x": [0.1], "y": [0.2]}, b, seed=0)
    with pytest.raises(ValueError, match="other"):
        stratified_permutation({"a": {"x": [0.1]}}, {"a": {"x": [0.1]}, "b": b}, seed=0)


def test_test_over_datasets_by_brute_force() -> None:
    a = {"one": {"x": [1.0, 2.0], "y": [0.5]}, "two": {"x": [4.0], "y": [-1.0], "z": [0.25]}}
    b = {name: {unit: [0.0] * len(v) for unit, v in units.items()} for name, units in a.items()}
    parts = np.array([3 / 3, 0.5 / 3, 4 / 3, -1 / 3, 0.25 / 3]) / 2
    found = stratified_permutation(a, b, seed=0)
    assert found.difference == pytest.approx(parts.sum()) and found.effect_size is None and found.units == 5
    flipped = [abs(np.dot(signs, parts)) for signs in itertools.product((1, -1), repeat=5)]
    assert found.p == pytest.approx(np.mean(np.array(flipped) >= parts.sum() - 1e-12))
    strata = [Stratum.from_units(a[name]) for name in ("one", "two")]
    assert contributions(strata) == pytest.approx(parts)


@pytest.mark.slow
def test_p_is_below_five_percent_in_five_percent_of_null_worlds() -> None:
    rng, runs, hits = np.random.default_rng(11), 600, 0
    for run in range(runs):
        a = clustered(rng, 20)
        b = {unit: values + rng.normal(0, 0.5) for unit, values in a.items()}
        hits += paired_permutation(a, b, seed=run, draws=400).p <= 0.05
    assert 0.03 <= hits / runs <= 0.07


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([]) == [] and holm([0.02]) == [0.02]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_holm_lies_between_the_raw_and_bonferronis(ps: list[float], random: object) -> None:
    adjusted = holm(ps)
    assert all(p <= q <= min(1.0, len(ps) * p) + 1e-12 for p, q in zip(ps, adjusted, strict=True))
    order = sorted(range(len(ps)), key=lambda _: random.random())  # type: ignore[attr-defined]
    assert holm([ps[i] for i in order]) == pytest.approx([adjusted[i] for i in order])


@pytest.mark.slow
def test_ten_thousand_cases_take_a_moment() -> None:
    values = np.random.default_rng(12).random((10_000, 20))
    values[::3, 10:] = np.nan
    began = time.process_time()
    mean_intervals([Stratum.of(values, np.arange(10_000) // 2)], seed=0)
    a, b = ({f"{i:05}": values[i : i + 1, side] for i in range(10_000)} for side in (0, 1))
    paired_permutation(a, b, seed=0)
    assert time.process_time() - began < 2


def test_a_mean_of_columns_counts_each_column_the_same() -> None:
    """Two datasets, of two columns and of one; the mean over three columns, not over cases or datasets."""
    first = Stratum.of(np.array([[0.9, np.nan], [0.7, np.nan], [np.nan, 0.2]]), np.array([0, 1, 1]))
    second = Stratum.of(np.array([[0.6], [0.8]]), np.array([5, 6]))
    found = mean_of_columns([first, Stratum.of(np.empty((0, 0)), np.empty(0, dtype=int)), second], seed=0)
    assert found is not None and found.mean == pytest.approx((0.8 + 0.2 + 0.7) / 3)
    assert (found.units, found.cases) == (4, 5)
    assert mean_of_columns([], seed=0) is None


def test_a_mean_of_columns_has_the_interval_of_a_mean_over_as_many_datasets() -> None:
    """Where every unit has one value of each column: that of the units' own means, weighted by columns."""
    rng = np.random.default_rng(5)
    wide, narrow = rng.random((12, 3)), rng.random((9, 1))
    found = mean_of_columns([Stratum.of(v, np.arange(len(v))) for v in (wide, narrow)], seed=1)
    assert found is not None
    # The same draws by hand: a dataset of three concepts weighs three times as much as one of a single one.
    drawn = []
    for i, values in enumerate((wide, narrow)):
        weights = np.concatenate([w for _, w in resampled_strata([len(values)], 2000, (1, i))])
        drawn.append(weights @ values.mean(axis=1) / len(values))
    low, high = percentiles(np.stack([drawn[0] * 1.5, drawn[1] * 0.5]), np.array([12, 9]), 0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx((wide.mean(axis=0).sum() + narrow.mean()) / 4)
    alone = bootstrap_mean({str(i): v for i, v in enumerate(narrow)}, seed=1)
    one = mean_of_columns([Stratum.of(narrow, np.arange(9))], seed=1)
    assert one is not None and (one.low, one.high) == pytest.approx((alone.low, alone.high))
