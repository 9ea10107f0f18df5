"""Probes of classification: against scikit-learn, against closed forms, and on features that tell or do not tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexitome.evaluation.probing.linear import Part, logistic, sgd, standardised
from lexitome.evaluation.probing.neighbours import knn, top, vote
from lexitome.evaluation.probing.scores import METRICS, class_scores, point_score
from lexitome.evaluation.probing.volumes import AttentionConfig, Bags, GatedAttention, attention, pooled


def blobs(rng: np.random.Generator, count: int, classes: int = 3, dim: int = 8, apart: float = 3.0) -> Part:
    truth = np.eye(classes, dtype=bool)[rng.integers(0, classes, count)]
    centres = np.random.default_rng(7).normal(0, apart, (classes, dim))
    return Part((truth @ centres + rng.normal(0, 1, (count, dim))).astype(np.float32), truth)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_chunks_change_nothing(bank: int, queries: int, chunk: int, other: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(bank, 6)).astype(np.float32), rng.normal(size=(queries, 6)).astype(np.float32)
    k = int(rng.integers(1, bank + 1))
    cosines, rows = top(a, b, k, chunks=(chunk, other))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    whole = unit[1] @ unit[0].T
    np.testing.assert_allclose(cosines, -np.sort(-whole, axis=1)[:, :k], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(whole, rows, 1), cosines, atol=1e-5)


def test_votes_are_those_of_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    train, test = blobs(rng, 300, apart=0.7), blobs(rng, 50, apart=0.7)
    peer = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    peer.fit(train.features, train.truth.argmax(1))
    ours = knn(train.features, train.truth, test.features, ks=(20,))[20]
    np.testing.assert_allclose(ours, peer.predict_proba(test.features), atol=1e-4)


def test_several_labels_are_voted_for_one_by_one() -> None:
    labels = np.array([[1, 1], [1, 0], [0, 0]], bool)
    cosines, rows = np.array([[1.0, 1.0, 1.0]], np.float32), np.array([[0, 1, 2]])
    np.testing.assert_allclose(vote(cosines, rows, labels, 3), [[2 / 3, 1 / 3]])
    np.testing.assert_allclose(vote(cosines, rows, labels, 2), [[1.0, 0.5]])


def test_a_small_bank_votes_as_a_whole() -> None:
    part = blobs(np.random.default_rng(1), 12)
    assert list(knn(part.features, part.truth, part.features, ks=(10, 20, 100))) == [10]
    assert list(knn(part.features, part.truth, part.features, ks=(20, 100))) == [12]
    with pytest.raises(ValueError, match=r"1\.\.12"):
        top(part.features, part.features, 13)


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

    rng = np.random.default_rng(2)
    truth = np.eye(3, dtype=bool)[rng.integers(0, 3, 90)]
    probability = rng.dirichlet(np.ones(3), 90) + 0.3 * truth
    units = [str(i // 2) for i in range(90)]
    found = class_scores(truth, probability, units, exclusive=True, draws=200)
    y, p = truth.argmax(1), probability.argmax(1)
    wanted = {
        "auc": roc_auc_score(truth, probability, average="macro"),
        "accuracy": (y == p).mean(),
        "balanced_accuracy": balanced_accuracy_score(y, p),
        "f1": f1_score(y, p, average="macro"),
    }
    assert set(found) == set(METRICS)
    for name, value in wanted.items():
        entry = found[name]
        assert entry is not None and entry["mean"] == pytest.approx(value)
        assert entry["low"] < value < entry["high"] and (entry["units"], entry["cases"]) == (45, 90)


def test_several_labels_are_scored_at_a_half() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(3)
    truth, probability = rng.random((60, 4)) < 0.3, rng.random((60, 4))
    found = class_scores(truth, probability, [str(i) for i in range(60)], exclusive=False, draws=100)
    assert found["accuracy"]["mean"] == pytest.approx(((probability >= 0.5) == truth).mean())  # type: ignore[index]
    assert found["f1"]["mean"] == pytest.approx(f1_score(truth, probability >= 0.5, average="macro"))  # type: ignore[index]


def test_copies_of_a_subject_do_not_narrow_the_interval() -> None:
    """Ten copies of each image under one name say no more than one."""
    rng = np.random.default_rng(4)
    truth = np.eye(2, dtype=bool)[rng.integers(0, 2, 40)]
    probability = np.clip(0.5 * truth + rng.random((40, 2)) * 0.6, 0, 1)
    names = [str(i) for i in range(40)]
    once = class_scores(truth, probability, names, exclusive=True, draws=500)["accuracy"]
    copied = class_scores(
        truth.repeat(10, 0), probability.repeat(10, 0), np.repeat(names, 10).tolist(), exclusive=True, draws=500
    )["accuracy"]
    assert once is not None and copied is not None
    assert copied["high"] - copied["low"] == pytest.approx(once["high"] - once["low"], rel=1e-6)


def test_a_class_without_images_has_no_say() -> None:
    truth = np.array([[1, 0, 0], [0, 1, 0]], bool)
    found = class_scores(truth, truth.astype(float), ["a", "b"], exclusive=True, draws=50)
    assert found["balanced_accuracy"]["mean"] == 1 and found["auc"]["mean"] == 1  # type: ignore[index]


def test_log_loss_only_breaks_ties() -> None:
    truth = np.eye(2, dtype=bool)
    sure, unsure, wrong = np.eye(2) * 0.98 + 0.01, np.eye(2) * 0.2 + 0.4, 1 - np.eye(2)
    scores = [point_score(truth, each, exclusive=True) for each in (sure, unsure, wrong)]
    assert scores[0] > scores[1] > 0.99 and scores[2] < 0.01
    assert point_score(truth, np.full((2, 2), np.nan), exclusive=True) == -np.inf


def test_standardising_uses_the_training_part_alone() -> None:
    train = Part(np.array([[0, 5], [2, 5]], np.float32), np.eye(2, dtype=bool))
    found, other = standardised(train, Part(np.array([[3, 9]], np.float32), train.truth[:1]))
    assert found.features.tolist() == [[-1, 0], [1, 0]] and other.features.tolist() == [[2, 0]]


@pytest.mark.parametrize("probe", [logistic, sgd])
def test_linear_probes_tell_classes_apart(probe: object) -> None:
    rng = np.random.default_rng(5)
    train, val, test = blobs(rng, 120), blobs(rng, 40), blobs(rng, 60)
    few = {"cs": (1e-3, 1.0)} if probe is logistic else {"epochs": 10, "batch": 32, "rates": (1e-7, 1e-2)}
    found = probe(train, val, test, exclusive=True, **few)  # type: ignore[operator]
    assert (found.probability.argmax(1) == test.truth.argmax(1)).mean() > 0.95
    np.testing.assert_allclose(found.probability.sum(1), 1, atol=1e-6)
    assert found.validation > 0.9


def test_one_penalty_for_several_labels_and_a_label_that_nobody_has() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(100, 4)).astype(np.float32)
    truth = np.stack([x[:, 0] > 0, x[:, 1] > 0.5, np.zeros(100, bool)], 1)
    parts = [Part(x[rows], truth[rows]) for rows in (slice(0, 60), slice(60, 80), slice(80, 100))]
    found = logistic(*parts, exclusive=False, cs=(1.0, 100.0))
    assert ((found.probability >= 0.5) == truth[80:]).mean() > 0.9 and not found.probability[:, 2].any()


def test_slices_are_pooled_by_case() -> None:
    features = np.array([[1, 2], [3, 0], [5, 5]], np.float32)
    rows = {"a": slice(0, 2), "b": slice(2, 3)}
    assert pooled(features, rows, ["b", "a"], "mean").tolist() == [[5, 5], [2, 1]]
    assert pooled(features, rows, ["a"], "max").tolist() == [[3, 2]]


def test_attention_finds_the_one_slice_that_tells() -> None:
    """Mean pooling drowns it: one of 12 slices, noise around it."""
    rng = np.random.default_rng(8)

    def bags(count: int) -> Bags:
        truth = np.eye(2, dtype=bool)[np.arange(count) % 2]
        found = []
        for row in truth:
            slices = rng.normal(size=(int(rng.integers(8, 14)), 6))
            slices[int(rng.integers(len(slices)))] += 4.0 * (1 if row[1] else -1)
            found.append(slices)
        return Bags(found, truth)

    test = bags(40)
    config = AttentionConfig(width=16, hidden=8, epochs=30, rate=1e-2)
    found = attention(bags(80), bags(20), test, exclusive=True, config=config)
    assert (found.probability.argmax(1) == test.truth.argmax(1)).mean() > 0.85
    assert 1 <= found.chosen <= 30


def test_filled_up_slices_do_not_count() -> None:
    import torch

    torch.manual_seed(0)
    net = GatedAttention(5, 2, AttentionConfig()).eval()
    slices = torch.randn(2, 4, 5)
    real = torch.tensor([[True, True, False, False], [True] * 4])
    logits, weights = net(slices, real)
    alone, _ = net(slices[:1, :2], real[:1, :2])
    torch.testing.assert_close(logits[:1], alone)
    assert not weights[0, 2:].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
