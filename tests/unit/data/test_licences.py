"""Licences of training sets: the table, the reading of other texts, and what follows for the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from lexitome.data.licences import JUDGED, judge, judge_text, licence_of_weights, permits_commercial_use

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "train"


@dataclass(frozen=True)
class Set:
    name: str
    licence: str


@pytest.mark.parametrize(
    "text",
    ["CC0", "CC0 1.0 (as stated by the organisers)", "CC BY 4.0", "cc-by-sa-4.0", "CC_BY_4.0", "MIT", "Apache-2.0",
     "BSD-3-Clause", "Public Domain"],
)  # fmt: skip
def test_permissive_texts(text: str) -> None:
    assert judge_text(text).verdict == "permissive"


@pytest.mark.parametrize(
    "text",
    ["CC BY-NC 4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC4.0", "CC BY-NCSA", "CC BY-ND 4.0", "GPL-3.0", "non-commercial",
     "research use only", "on request", "noncommercial use of the MIT repository", "free after registration",
     "needs written permission; code MIT"],
)  # fmt: skip
def test_forbidding_texts(text: str) -> None:
    assert judge_text(text).verdict == "restricted"


@pytest.mark.parametrize(
    "text",
    ["", "unstated", "unknown", "our own terms", "CC BY 4.0 (from memory)", "no licence file; paper is CC BY 4.0"],
)
def test_whatever_is_not_sure_is_not_permissive(text: str) -> None:
    assert judge_text(text).verdict == "unclear"


def test_a_listed_set_is_looked_up_unless_its_own_terms_are_stricter() -> None:
    assert judge("isic2017", "CC0 (from memory); unstated in the repository").verdict == "permissive"
    assert judge("isic2017", "CC BY-NC 4.0").verdict == "restricted"
    assert judge("drive", "CC BY 4.0").verdict == "unclear"


def test_one_set_makes_the_weights_research_only_and_is_named() -> None:
    free, shared, closed = Set("a", "CC BY 4.0"), Set("b", "CC BY-SA 4.0"), Set("c", "CC BY-NC 4.0")
    assert not permits_commercial_use(closed) and permits_commercial_use(shared)
    commercial = licence_of_weights([free, shared, Set("d", "CC0")])
    assert not commercial.research_only
    assert commercial.duties == "name as sources a; name and share alike b"
    research = licence_of_weights([free, closed])
    assert research.research_only and "1 of 2" in research.text and "no commercial use by c;" in research.duties
    assert research.judged["c"].verdict == "restricted" and research.judged["c"].why == "CC BY-NC 4.0"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the research images are not beside the repository")
def test_the_table_knows_every_training_set_and_permits_nothing_that_its_text_forbids() -> None:
    texts = {p.parent.name: json.loads(p.read_text()).get("license", "") for p in SHARED.glob("*/dataset.json")}
    assert JUDGED.keys() == texts.keys()
    for name, text in texts.items():
        if JUDGED[name].verdict == "permissive":
            assert judge_text(text).verdict != "restricted", name
        assert JUDGED[name].verdict == "permissive" or judge_text(text).verdict != "permissive", name
