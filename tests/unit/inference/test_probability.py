"""The probability of a finding is what its mask was cut from."""

from __future__ import annotations

import numpy as np
from test_segmenter import painted, scan

from lexitome.inference.segmenter import Segmenter
from lexitome.prompts import Query, Text


def test_only_who_asks_gets_probabilities(bright: Segmenter) -> None:
    volume = painted(np.ones((40, 50), bool))
    encoded, queries = bright.encode(volume), [Query(Text("polyp"))]
    assert bright.decode(encoded, queries).findings[0].probability is None
    with_them = bright.decode(encoded, queries, probabilities=True).findings[0]
    assert (with_them.mask == bright.decode(encoded, queries).findings[0].mask).all()


def test_the_mask_is_where_the_probability_is_a_half_or_more(bright: Segmenter) -> None:
    green = np.zeros((60, 90), bool)
    green[20:50, 30:70] = True
    volume = painted(green)
    finding = bright.decode(bright.encode(volume), [Query(Text("polyp"))], probabilities=True).findings[0]
    assert finding.probability is not None and finding.probability.dtype == np.float16
    assert finding.found and (finding.mask == (finding.probability >= 0.5)).all()
    assert finding.probability[0, 35, 50] > 0.99 and finding.probability[0, 5, 5] < 0.01


def test_an_absent_target_keeps_its_probability(bright: Segmenter) -> None:
    volume = painted(np.ones((40, 50), bool), presence=0)
    volume.array[1] = 145  # bright enough for a mask, not for a mask that speaks for itself
    finding = bright.decode(bright.encode(volume), [Query(Text("breast lesion"))], probabilities=True).findings[0]
    assert not finding.found and finding.probability is not None and 0.8 < finding.probability.min() < 0.9


def test_in_volumes_it_lies_on_the_grid_of_the_image(tiny: Segmenter) -> None:
    for volume in (scan(5), scan(12, (-2, -2, 3))):
        queries = [Query(Text(name)) for name in ("liver", "spleen")]
        for finding in tiny.decode(tiny.encode(volume), queries, probabilities=True).findings:
            assert finding.probability is not None and finding.probability.shape == volume.grid
            assert not (finding.mask & (finding.probability < 0.499)).any()  # specks may be missing, nothing is added
