"""Words to vectors without a neural network: static word-piece vectors distilled from a sentence encoder.

The table holds one vector for each word piece of the BERT vocabulary, made by `lexitome.training.distill_text` so that
their mean points where all-MiniLM-L6-v2 (Apache-2.0) puts the whole phrase, in the style of model2vec. It costs 4 MB
and no dependency, and the compact model is trained on exactly these vectors.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

UNKNOWN = "[UNK]"
_LONGEST_WORD = 100
_CJK = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def split_words(text: str) -> list[str]:
    """Lower-case words without accents; punctuation and CJK characters stand alone, as in BERT's basic tokenizer."""
    text = _CJK.sub(r" \1 ", unicodedata.normalize("NFD", text.lower()))
    text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cc", "Cf"))
    return re.findall(r"\w+|[^\w\s]", text.replace("_", " _ "))


def word_pieces(text: str, vocabulary: dict[str, int]) -> list[int]:
    """Ids of the greedy longest-match word pieces of `text` (Wu et al. 2016; BERT's uncased tokenizer)."""
    return [piece for word in split_words(text) for piece in _pieces_of_word(word, vocabulary)]


def _pieces_of_word(word: str, vocabulary: dict[str, int]) -> list[int]:
    if len(word) > _LONGEST_WORD:
        return [vocabulary[UNKNOWN]]
    pieces, start = [], 0
    while start < len(word):
        end = len(word)
        while end > start and ("##" if start else "") + word[start:end] not in vocabulary:
            end -= 1
        if end == start:
            return [vocabulary[UNKNOWN]]
        pieces.append(vocabulary[("##" if start else "") + word[start:end]])
        start = end
    return pieces


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Static text encoder.

    Args:
        vocabulary: word piece to row.
        table: (V, D) int8 vectors, the weight of each word piece already in their length.
        scale: (V,) float32, multiplies each row.
    """

    vocabulary: dict[str, int]
    table: NDArray[np.int8]
    scale: NDArray[np.float32]

    @staticmethod
    @lru_cache(maxsize=1)
    def load() -> TextEncoder:
        """The encoder that ships inside the package."""
        with files("lexitome").joinpath("assets/text.npz").open("rb") as file, np.load(file) as stored:
            pieces = bytes(stored["pieces"]).decode().split("\n")
            return TextEncoder({piece: row for row, piece in enumerate(pieces)}, stored["table"], stored["scale"])

    @property
    def dim(self) -> int:
        return self.table.shape[1]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D) float32 unit vectors; a text without any known word piece gives the zero vector."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        unknown = self.vocabulary[UNKNOWN]
        for row, text in enumerate(texts):
            ids = [piece for piece in word_pieces(text, self.vocabulary) if piece != unknown]
            if ids:
                vectors[row] = self.scale[ids] @ self.table[ids].astype(np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-8), dtype=np.float32)
