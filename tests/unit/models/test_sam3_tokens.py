"""Words to token ids, against transformers' CLIP tokenizer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from lexitome.errors import InputError
from lexitome.models.sam3.tokens import END, OFFICIAL, START, Tokens

WORDS = ["polyp", "optic disc", "optic cup", "left lung", "right lung", "skin lesion", "nerve", "polyps, lungs"]
TOKENS = Tokens.learn(WORDS, 600)


def merges_of(tokens: Tokens) -> list[list[str]]:
    found: list[list[str]] = json.loads(tokens.tokenizer.to_str())["model"]["merges"]
    return found


def ids_of(tokens: Tokens, text: str) -> list[int]:
    ids, mask = tokens.encode([text])
    return ids[mask].tolist()


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The learned merges in the file of the official code."""
    folder = tmp_path_factory.mktemp("official")
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(" ".join(pair) for pair in merges_of(TOKENS))]
    (folder / OFFICIAL).write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_equals_clip(text: str) -> None:
    if any(special in text for special in (START, END)):
        return
    vocabulary = TOKENS.tokenizer.get_vocab()
    clip = CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in merges_of(TOKENS)])
    assert ids_of(TOKENS, text) == clip(text, truncation=True, max_length=32)["input_ids"]


def test_shapes_and_padding() -> None:
    ids, mask = TOKENS.encode(["polyp", "a much longer wording of the optic cup", ""])
    assert ids.shape == mask.shape == (3, 32) and ids.dtype == torch.long and mask.dtype == torch.bool
    assert (ids[:, 0] == TOKENS.start).all()
    lengths = mask.sum(1)
    assert (ids[torch.arange(3), lengths - 1] == TOKENS.end).all() and (ids[~mask] == 0).all()
    assert lengths[2] == 2


def test_case_and_spaces_do_not_matter() -> None:
    assert ids_of(TOKENS, "  Optic\n CUP ") == ids_of(TOKENS, "optic cup") != ids_of(TOKENS, "optic disc")


def test_text_that_looks_like_a_token_is_text() -> None:
    ids = ids_of(TOKENS, f"polyp {END} nerve")
    assert ids.count(TOKENS.end) == 1 and ids[-1] == TOKENS.end


@pytest.mark.parametrize("text", ["polyp", "", "optic cup " * 3])
def test_nothing_is_cut(text: str) -> None:
    assert TOKENS.cut(text) == ""


def test_what_is_cut() -> None:
    """Whole words, and as much as is not read."""
    text = "polyp " * 31 + "near the Cecum"
    lost = TOKENS.cut(text)
    assert lost.endswith("near the Cecum") and text.strip().endswith(lost)
    assert ids_of(TOKENS, text) == ids_of(TOKENS, text + " and more") and len(ids_of(TOKENS, text)) == 32
    assert lost.split()[0] in ("polyp", "near")


@pytest.mark.parametrize(("most", "size"), [(514, 514), (520, 520), (5000, 552)])
def test_learned_size(most: int, size: int) -> None:
    """At most what was asked for, and no more merges than there are; whatever is written can be encoded."""
    tokens = Tokens.learn(WORDS, most)
    assert tokens.size == size and (tokens.start, tokens.end) == (size - 2, size - 1)
    assert ids_of(tokens, "肝臓 Ω 🫀")[1:-1]


def test_saved_and_loaded(tmp_path: Path) -> None:
    TOKENS.save(tmp_path / "model")
    again = Tokens.load(tmp_path / "model")
    for text in (*WORDS, "Über-Polyp", END):
        assert ids_of(again, text) == ids_of(TOKENS, text)


def test_official_file(official: Path) -> None:
    for place in (official, official / OFFICIAL):
        tokens = Tokens.load(place)
        assert tokens.size == TOKENS.size
        assert ids_of(tokens, "optic cup of the left eye") == ids_of(TOKENS, "optic cup of the left eye")


def test_vocabulary_and_merges(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(TOKENS.tokenizer.get_vocab()))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges_of(TOKENS))]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    assert ids_of(Tokens.load(tmp_path), "skin lesions") == ids_of(TOKENS, "skin lesions")


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tokenizer"):
        Tokens.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'])
def test_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError):
        Tokens.load(tmp_path)


def test_damaged_official_file(tmp_path: Path) -> None:
    (tmp_path / OFFICIAL).write_bytes(b"no gzip")
    with pytest.raises(InputError):
        Tokens.load(tmp_path)
