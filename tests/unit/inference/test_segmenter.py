"""The shipped model through its two steps: values, geometry, memory of nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lexitome.inference import segmenter as module
from lexitome.inference.segmenter import Segmenter
from lexitome.models.catalog import CATALOG
from lexitome.prompts import Box, Point, Query, Text
from lexitome.volume import PIXEL_AFFINE, Volume


@pytest.fixture(scope="module")
def compact() -> Segmenter:
    return Segmenter.load("compact", threads=1)


def photograph() -> Volume:
    rng = np.random.default_rng(0)
    array = rng.integers(60, 90, (3, 1, 90, 120)).astype(np.uint8)
    array[0, 0, 30:60, 40:80] = 200
    return Volume(array, PIXEL_AFFINE, spacing_known=False)


def scan(depth: int) -> Volume:
    rng = np.random.default_rng(1)
    array = rng.normal(-1000, 20, (1, depth, 40, 50))
    array[:, :, 8:32, 8:42] = rng.normal(50, 20, (1, depth, 24, 34))
    return Volume(array.astype(np.int16), np.diag([-2.0, -2.0, 5.0, 1.0]), modality="CT")


def test_answers_lie_on_the_grid_of_the_image(compact: Segmenter) -> None:
    volume = photograph()
    result = compact.decode(compact.encode(volume), [Query(Text("skin lesion")), Query(Text("liver"))])
    assert [f.name for f in result.findings] == ["skin lesion", "liver"]
    for finding in result.findings:
        assert finding.mask.shape == volume.grid and 0 <= finding.presence <= 1 and 0 <= finding.score <= 1
        assert finding.found == (finding.score > 0)
    assert result.volume is volume


def test_encoded_is_a_value(compact: Segmenter) -> None:
    """Decoding twice, or in another order, or many at once, gives the same answers."""
    encoded = compact.encode(photograph())
    queries = [Query(Text("polyp")), Query(spatial=(Box(40, 30, 79, 59),)), Query(Text("polyp"), (Point(60, 45),))]
    first = compact.probabilities(encoded, queries)
    again = compact.probabilities(encoded, queries[::-1])[::-1]
    for one, other in zip(first, again, strict=True):
        assert np.abs(one.probability - other.probability).max() < 1e-4


def test_a_box_says_where(compact: Segmenter) -> None:
    volume = photograph()
    (answer,) = compact.decode(compact.encode(volume), [Query(spatial=(Box(40, 30, 79, 59),))]).findings
    inside = answer.mask[0, 30:60, 40:80].sum()
    assert answer.found and answer.presence == 1.0
    assert inside > 0.5 * 30 * 40 and inside > 0.6 * answer.mask.sum()


def test_long_volumes_give_the_same_answer_without_holding_features(
    compact: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [Query(Text("liver")), Query(Text("lungs"))]
    held = compact.encode(scan(6))
    assert len(next(iter(held.features.values()))) == 6
    monkeypatch.setattr(module, "HELD_SLICES", 3)
    streamed = compact.encode(scan(6))
    assert streamed.features == {}
    for one, other in zip(compact.probabilities(held, queries), compact.probabilities(streamed, queries), strict=True):
        assert np.abs(one.probability - other.probability).max() < 1e-5


def test_flipped_storage_gives_the_flipped_mask(compact: Segmenter) -> None:
    """The same patient stored along other axes: the mask is the same in the world."""
    volume = scan(4)
    array = volume.array[:, :, ::-1, ::-1]
    affine = volume.affine @ np.array([[-1, 0, 0, 49], [0, -1, 0, 39], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    turned = Volume(np.ascontiguousarray(array), affine, modality="CT")
    queries = [Query(Text("liver")), Query(Text("left kidney"), (Box(10, 10, 30, 30),))]
    mirrored = [Query(Text("liver")), Query(Text("left kidney"), (Box(19, 9, 39, 29),))]
    one = compact.probabilities(compact.encode(volume), queries)
    other = compact.probabilities(compact.encode(turned), mirrored)
    for a, b in zip(one, other, strict=True):
        assert np.abs(a.probability - b.probability).max() < 1e-4  # both in the orientation of the view


def test_points_without_words_answer_on_their_slice_only(compact: Segmenter) -> None:
    (finding,) = compact.decode(compact.encode(scan(5)), [Query(spatial=(Point(25, 20, 2),))]).findings
    assert set(np.flatnonzero(finding.mask.any(axis=(1, 2)))) <= {1, 2, 3}


def test_presence_is_one_half_at_the_threshold(compact: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever threshold was chosen for a concept, users read 0.5 as "as likely as not"."""
    encoded = compact.encode(photograph())
    untrained = [Query(Text("zeppelin"))]
    monkeypatch.setitem(compact.card.__dict__, "_stored", {**compact.card._stored, "default_threshold": 0.5})
    raw = compact.decode(encoded, untrained).findings[0].presence
    monkeypatch.setitem(compact.card.__dict__, "_stored", {**compact.card._stored, "default_threshold": raw})
    assert compact.decode(encoded, untrained).findings[0].presence == pytest.approx(0.5, abs=1e-3)


def test_provenance_names_the_weights(compact: Segmenter) -> None:
    result = compact.decode(compact.encode(photograph()), [Query(Text("polyp"))])
    assert result.provenance["weights_sha256"] == CATALOG["compact"].sha256 == CATALOG["compact"].measure_sha256()
    assert result.provenance["research_only"] is True


def test_damaged_weights_and_unknown_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match="choose from compact"):
        Segmenter.load("compct")
    card = dataclasses.replace(CATALOG["compact"])
    card.__dict__["_stored"] = {**CATALOG["compact"]._stored, "sha256": "0" * 64}
    monkeypatch.setitem(CATALOG, "compact", card)
    with pytest.raises(ValueError, match="damaged"):
        Segmenter.load("compact")
