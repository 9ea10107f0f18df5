"""Words to the token ids SAM3 reads: CLIP's byte-level BPE, in lower case. Needs torch and tokenizers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from lexitome.errors import InputError
from lexitome.models.sam3.presets import CONTEXT

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What a token never crosses (Radford et al. 2021, CLIP, official tokenizer)."""
OFFICIAL = "bpe_simple_vocab_16e6.txt.gz"
OFFICIAL_SIZE = 49408
BARE = 514
"""Tokens without any merges: each byte, each byte at the end of a word, start and end."""
Merge = tuple[str, str]
GET = f"It comes with the weights: tokenizer.json, vocab.json with merges.txt, or {OFFICIAL} of the official code."


@dataclass(frozen=True, eq=False)
class Tokens:
    """A loaded tokenizer; threads may share it. Text is text: "<|endoftext|>" in a prompt is no end."""

    tokenizer: Tokenizer
    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of tokens, start and end included."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (Q, 32) long, padded with 0, and which are tokens (Q, 32) bool. What does not fit is cut: see `cut`."""
        ids = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
        mask = torch.zeros(len(texts), CONTEXT, dtype=torch.bool)
        for row, text in enumerate(texts):
            found = [self.start, *self.tokenizer.encode(text).ids[: CONTEXT - 2], self.end]
            ids[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found)] = True
        return ids, mask

    def cut(self, text: str) -> str:
        """The end of a text that does not fit into the context and is not read; "" if all of it is."""
        spans = self.tokenizer.encode(text).offsets[CONTEXT - 2 :]
        if not spans:
            return ""
        whole_words = text.rfind(" ", 0, spans[0][0] + 1) + 1
        return text[whole_words:].strip()

    def save(self, folder: Path) -> None:
        """As `tokenizer.json`, which transformers reads as well."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))

    @staticmethod
    def load(folder: Path) -> Tokens:
        """From a folder of transformers or of the official code, or from such a file itself.

        Raises:
            InputError: there is no tokenizer, or it is damaged.
        """
        root = folder if folder.is_dir() else folder.parent
        try:
            if (root / "tokenizer.json").is_file():
                return _ready(Tokenizer.from_file(str(root / "tokenizer.json")), root)
            if (root / "vocab.json").is_file() and (root / "merges.txt").is_file():
                vocabulary, merges = BPE.read_file(str(root / "vocab.json"), str(root / "merges.txt"))
                return _ready(_tokenizer(merges, vocabulary), root)
            if (root / OFFICIAL).is_file():
                return _ready(_tokenizer(_official(root / OFFICIAL)), root)
        except InputError:
            raise
        except Exception as error:  # the tokenizers library raises plain Exception
            raise InputError(root, f"its tokenizer cannot be read ({error})", GET) from error
        raise InputError(root, "holds no tokenizer", GET)

    @staticmethod
    def learn(words: Iterable[str], size: int) -> Tokens:
        """A tokenizer for a model trained from scratch, laid out as CLIP's: bytes, bytes that end a word, merges.

        Args:
            words: what will be asked; any other text can be written in its tokens, too, in more of them.
            size: of the vocabulary at most; from 514, which is every byte twice, start and end.
        """
        tokenizer = _tokenizer([])
        trainer = BpeTrainer(vocab_size=size, end_of_word_suffix="</w>", show_progress=False)
        tokenizer.train_from_iterator(words, trainer)
        merges = [(first, second) for first, second in json.loads(tokenizer.to_str())["model"]["merges"]]
        return _ready(_tokenizer(merges[: max(0, size - BARE)]), Path("vocabulary"))


def _tokenizer(merges: list[Merge], vocabulary: dict[str, int] | None = None) -> Tokenizer:
    """CLIP's, by default with the ids that the official code gives: bytes, bytes at the end of a word, merges."""
    if vocabulary is None:
        letters = _letters()
        names = [*letters, *(f"{each}</w>" for each in letters), *("".join(pair) for pair in merges), START, END]
        vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", fuse_unk=False))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    return tokenizer


def _official(path: Path) -> list[Merge]:
    """Merges of the file that the official code reads, in which more than it uses are listed."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : OFFICIAL_SIZE - BARE + 1]
    return [(first, second) for first, second in (line.split() for line in lines if line)]


def _letters() -> list[str]:
    """The 256 bytes as letters, in CLIP's order: printable ones as they are, then the others, shifted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(hidden))]


def _ready(tokenizer: Tokenizer, where: Path) -> Tokens:
    """
    Raises:
        InputError: it knows no start and end of a text.
    """
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    if start is None or end is None:
        raise InputError(where, f"its tokenizer does not know {START} and {END}", GET)
    tokenizer.post_processor = None  # start and end are ours to add
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return Tokens(tokenizer, start, end)
