"""Every model of the catalog keeps the promises of the design: small, described, licensed, and answering any query."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lexitome.concepts import Vocabulary
from lexitome.data.licences import permits_commercial_use
from lexitome.inference.segmenter import Segmenter
from lexitome.models.catalog import CATALOG
from lexitome.prompts import Box, Exemplar, MaskPrompt, Point, Query, Text
from lexitome.volume import PIXEL_AFFINE, Volume

MOST_MB = 30.0
RESTRICTED = re.compile(r"\bNC\b|non-?commercial|research|written permission", re.IGNORECASE)
QUERIES = [
    Query(Text("liver")),
    Query(Text("something nobody has a word for")),
    Query(Text("간")),
    Query(spatial=(Box(2, 3, 20, 18),)),
    Query(spatial=(Point(10, 10), Point(2, 2, inside=False))),
    Query(Text("liver"), (Exemplar(Box(2, 3, 20, 18)),)),
    Query(spatial=(MaskPrompt(np.ones((1, 24, 32), bool)),)),
]


@pytest.mark.parametrize("name", CATALOG)
def test_card_is_complete(name: str) -> None:
    card = CATALOG[name]
    assert card.name == name and card.summary and card.licence and card.weights_licence
    assert 0 < card.size_mb <= MOST_MB and card.measure_sha256() == card.sha256
    assert card.sets and all(s.licence and s.modality for s in card.sets)
    restricted = [s for s in card.sets if not permits_commercial_use(s) or RESTRICTED.search(s.licence)]
    assert card.metrics and card.side % 32 == 0
    assert card.research_only or not restricted, "a set that is not free for commerce makes the weights research only"


@pytest.mark.parametrize("name", CATALOG)
def test_trained_concepts_are_in_the_vocabulary_and_lead_back(name: str) -> None:
    vocabulary, card = Vocabulary.load(), CATALOG[name]
    for trained in card.trained_concepts:
        assert vocabulary.get(trained.concept) is not None
        resolved = vocabulary.resolve(trained.words).concept
        assert resolved is not None and resolved.name == trained.concept
        assert trained.families and 0 < trained.threshold < 1 and trained.side % 32 == 0
    assert len({t.concept for t in card.trained_concepts}) == len(card.trained_concepts)


@pytest.mark.parametrize("name", CATALOG)
@pytest.mark.parametrize(
    "shape", [(1, 1, 24, 32), (3, 1, 24, 32), (1, 1, 1, 500), (1, 1, 700, 3)], ids=["grey", "colour", "row", "column"]
)
def test_answers_every_query_on_the_grid(name: str, shape: tuple[int, int, int, int]) -> None:
    segmenter = Segmenter.load(name, threads=1)
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    volume = Volume(values, PIXEL_AFFINE, spacing_known=False)
    fits = QUERIES if shape[2:] == (24, 32) else QUERIES[:3]
    findings = segmenter.decode(segmenter.encode(volume), fits).findings
    assert len(findings) == len(fits)
    for finding in findings:
        assert finding.mask.shape == volume.grid and finding.mask.dtype == bool
        assert np.isfinite([finding.presence, finding.score]).all()
        assert finding.instances is None or np.array_equal(finding.instances > 0, finding.mask)
