"""Concepts: what words mean. A vocabulary of coded medical concepts, and free text resolved to one of them.

Words are compared in three steps, from certain to likely: the canonical name, a listed synonym (spelling, plural, word
order, request words such as "show me the ..." and the mention of a modality do not matter), then meaning, by cosine of
text vectors. Laterality is never lost: "left kidney" is not "right kidney", and "kidney" is neither. What remains is
"uncoded", with the nearest names as suggestions; `docs/decisions/0004-concepts.md` says how the thresholds were chosen.

    python -m lexitome.concepts --build

writes ``assets/concepts.npz``, the index of ``assets/concepts.json``; run it after a change of that file or of the text
vectors (a test tells when it is out of date).
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lexitome.text import TextEncoder, word_pieces

How = Literal["exact", "synonym", "meaning", "uncoded"]

FAMILIES = (
    *("ct", "mr", "ultrasound", "xray", "dental-xray", "fundus", "oct", "dermoscopy", "endoscopy", "histology"),
    *("fluorescence", "brightfield", "blood-smear", "electron-microscopy", "pet", "photo"),
)
"""Modality families: what `Concept.modalities` is written in."""

# Measured on held-out phrases: see docs/decisions/0004-concepts.md.
MIN_SIMILARITY = 0.70
MIN_COVERAGE = 0.50
MIN_SUGGESTION = 0.50
_SHORTLIST = 6


@dataclass(frozen=True)
class Code:
    """A coded term, e.g. ("10200004", "SCT", "Liver")."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Concept:
    """One thing that can be asked for.

    Args:
        name: canonical English name, lower case, unique in the vocabulary.
        synonyms: other words for it, any language; the name itself need not be among them.
        modalities: where it is seen, as modality families ("ct", "mr", "ultrasound", "fundus", ...).
        anatomy: region or organ system.
        code: SNOMED CT code where known.
        laterality: "left" or "right" for one of a pair, else "".
        broader: names of the concepts this one is a part or a kind of ("left lung" -> "lungs").
    """

    name: str
    synonyms: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    anatomy: str = ""
    code: Code | None = None
    laterality: str = ""
    broader: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resolution:
    """What a text was taken to mean.

    Args:
        text: as typed.
        concept: None where uncoded.
        how: which comparison decided: "exact" is the canonical name, "synonym" any other listed wording or inflection.
        similarity: 1 for "exact" and "synonym", else the cosine of the nearest phrase, 0 where nothing was compared.
        alternatives: nearest other names, best first, for "did you mean".
    """

    text: str
    concept: Concept | None
    how: How
    similarity: float
    alternatives: tuple[str, ...] = ()


# --- words ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[a-z0-9]+|[\uac00-\ud7a3]+|[\u3400-\u4dbf\u4e00-\u9fff]+|[,;+/&]")
_CJK = re.compile("[\uac00-\ud7a3\u3400-\u4dbf\u4e00-\u9fff]")
_STAIN = re.compile(r"\bh\s?&\s?e\b")
_DETERMINERS = frozenset(("the", "a", "an", "this", "my", "these"))
_PREPOSITIONS = frozenset(("in", "on", "from", "of", "at", "within", "for"))


@dataclass(frozen=True, eq=False)
class _Wording:
    """The words that shape a request rather than name its target, from ``assets/wording.json``.

    Args:
        sides: "lt" -> "left", "both" -> "both"; `side_letters` count only at an end of the text ("L kidney").
        joiners: "and" and its like, which may make two targets of one text.
        ordering: words that only order other words: texts are compared as bags, so "nuclei of cells" is "cell nuclei".
        negations: words that turn the meaning round.
        places: words that move the target elsewhere ("around the lung").
        generic: words that narrow nothing down ("liver tissue").
        request, trailing: what is said around the target ("show me ...", "... please").
        modalities: word to family; `dicom_modalities`: DICOM code to families.
        modality_context: counts as part of a modality beside one ("abdominal CT"); `image_words` do, too ("scan").
        spelling: British to American, inside words. plurals: irregular ones. adjectives: to their nouns.
    """

    sides: Mapping[str, str]
    side_letters: Mapping[str, str]
    side_tails: frozenset[str]
    joiners: frozenset[str]
    ordering: frozenset[str]
    negations: frozenset[str]
    places: frozenset[str]
    generic: frozenset[str]
    request: frozenset[str]
    trailing: frozenset[str]
    modalities: Mapping[str, str]
    dicom_modalities: Mapping[str, tuple[str, ...]]
    modality_context: frozenset[str]
    image_words: frozenset[str]
    spelling: Mapping[str, str]
    plurals: Mapping[str, str]
    adjectives: Mapping[str, str]
    cjk_side: re.Pattern[str]
    cjk_request: re.Pattern[str]
    cjk_particle: re.Pattern[str]

    @staticmethod
    @lru_cache(maxsize=1)
    def load() -> _Wording:
        stored = json.loads(files("lexitome").joinpath("assets/wording.json").read_bytes())
        sets = ("side_tails", "joiners", "negations", "places", "generic", "request", "trailing", "modality_context")
        maps = ("sides", "side_letters", "modalities", "adjectives")
        inverted: dict[str, Any] = {
            name: {word: meaning for meaning in stored[name] for word in stored[name][meaning]} for name in maps
        }
        plain: dict[str, Any] = {name: frozenset(stored[name]) for name in (*sets, "image_words")}
        cjk_sides = sorted(filter(_CJK.match, inverted["sides"]), key=len, reverse=True)
        start, end = "|".join(stored["cjk_request_start"]), "|".join(stored["cjk_request_end"])
        return _Wording(
            **inverted,
            **plain,
            ordering=frozenset((*stored["ordering"], *stored["joiners"])),
            dicom_modalities={code: tuple(families) for code, families in stored["dicom_modalities"].items()},
            spelling=stored["spelling"],
            plurals=stored["plurals"],
            cjk_side=re.compile("|".join(cjk_sides)),
            cjk_request=re.compile(f"^(?:{start})|(?:{end})$"),
            cjk_particle=re.compile(f"(?:{'|'.join(stored['cjk_particles'])})$"),
        )


def _base(word: str) -> str:
    """One form for singular, plural and adjective; not always a word, but always the same for the same meaning."""
    words = _Wording.load()
    known = words.adjectives.get(word) or words.plurals.get(word)
    if known:
        return known
    if len(word) <= 3 or word.endswith(("ss", "us", "is")) or not word.endswith("s"):
        return word
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "xes", "sses", "zes")) else word[:-1]


def _tokens(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold().replace("'s", "").replace("’s", "")
    plain = unicodedata.normalize("NFD", text)
    text = unicodedata.normalize("NFC", "".join(c for c in plain if unicodedata.category(c) != "Mn"))
    tokens = _TOKEN.findall(_STAIN.sub("histology", text))
    for british, american in _Wording.load().spelling.items():
        if british in text:
            tokens = [token.replace(british, american) for token in tokens]
    return tokens


@dataclass(frozen=True)
class Phrase:
    """A text taken apart: its words without the side, and the side; "?" for two sides that do not belong together."""

    words: tuple[str, ...]
    side: str

    @property
    def key(self) -> str:
        """The same for all spellings, inflections and orders of the same words."""
        return f"{self.side}|{' '.join(sorted({_base(word) for word in self.words} - _Wording.load().ordering))}"

    @property
    def plain(self) -> str:
        """The words in their order, for the text encoder."""
        return " ".join(word for word in self.words if word not in _Wording.load().joiners)


def parse(text: str) -> Phrase:
    """Words and side of `text`; nothing is dropped but the side."""
    tokens = _tokens(text)
    return _parse_cjk(tokens) if _CJK.search(text) else _split_side(tokens)


def _parse_cjk(tokens: list[str]) -> Phrase:
    """Korean and Chinese: spaces carry little, so the words are joined to one; the side is a word or a character."""
    words = _Wording.load()
    joined = "".join(token for token in tokens if token not in words.joiners)
    sides = [words.sides[found] for found in words.cjk_side.findall(joined)]
    return Phrase((words.cjk_side.sub("", joined),), _one_side(sides, adjacent=True))


def _split_side(tokens: list[str]) -> Phrase:
    words = _Wording.load()
    rest: list[str] = []
    sides: list[str] = []
    places: list[int] = []
    for position, token in enumerate(tokens):
        at_end = position in (0, len(tokens) - 1) and len(tokens) > 1
        side = words.sides.get(token) or (words.side_letters.get(token) if at_end else None)
        if side:
            sides.append(side)
            places.append(position)
        elif not (token in words.side_tails and places and places[-1] == position - 1):
            rest.append(token)
    # "left and right lung" means both; "left kidney and right lung" asks for two things.
    return Phrase(tuple(rest), _one_side(sides, adjacent=not places or places[-1] - places[0] <= 2))


def _one_side(sides: list[str], adjacent: bool) -> str:
    distinct = set(sides) - {"both"}
    if len(distinct) == 2:
        return "" if adjacent else "?"
    return distinct.pop() if distinct else ""


def modality_families(modality: str) -> frozenset[str]:
    """Families that a DICOM modality ("MR"), a family or plain words ("Chest X-ray") name; empty where unknown."""
    words = _Wording.load()
    name = modality.strip().casefold()
    if name in FAMILIES:
        return frozenset((name,))
    return frozenset(words.dicom_modalities.get(name.upper(), ())) or _named_families(_tokens(modality))


def _named_families(tokens: Iterable[str]) -> frozenset[str]:
    words = _Wording.load()
    return frozenset(words.modalities[token] for token in tokens if token in words.modalities)


def _readings(text: str) -> Iterator[tuple[Phrase, frozenset[str]]]:
    """What `text` may say, from literal to bold: as typed, without request words, without the modality it mentions."""
    yield parse(text), frozenset()
    tokens = _tokens(text)
    if _CJK.search(text):
        yield from _cjk_readings(tokens)
        return
    asked = _strip_request(tokens)
    yield _split_side(asked), frozenset()
    bare = _strip_modality(asked)
    if bare != asked:
        yield _split_side(_strip_request(bare)), _named_families(asked)


def _cjk_readings(tokens: list[str]) -> Iterator[tuple[Phrase, frozenset[str]]]:
    words = _Wording.load()
    rest = "".join(token for token in tokens if token not in words.modalities and token not in words.joiners)
    while (shorter := words.cjk_request.sub("", rest)) and shorter != rest:
        rest = shorter
    yield _parse_cjk([rest]), _named_families(tokens)
    if bare := words.cjk_particle.sub("", rest):
        yield _parse_cjk([bare]), _named_families(tokens)


def _strip_request(tokens: list[str]) -> list[str]:
    """Drop "show me the ..." and "... please" at the ends, never the last word that is left."""
    words = _Wording.load()
    start, end = 0, len(tokens)
    while end - start > 1 and (tokens[start] in words.request or tokens[start] in words.ordering):
        start += 1
    while end - start > 1 and (tokens[end - 1] in words.trailing or tokens[end - 1] in words.ordering):
        end -= 1
    return tokens[start:end]


def _strip_modality(tokens: list[str]) -> list[str]:
    """Drop "... in an abdominal CT image" at the end and "CT scan of ..." at the start."""
    words = _Wording.load()
    image = words.modalities.keys() | words.image_words
    described = image | words.modality_context
    tail = len(tokens)
    while tail > 0 and (tokens[tail - 1] in described or (tail < len(tokens) and tokens[tail - 1] in _DETERMINERS)):
        tail -= 1
    introduced = tail and (tokens[tail - 1] in _PREPOSITIONS or image.intersection(tokens[tail : tail + 1]))
    if introduced and image.intersection(tokens[tail:]):
        return _strip_modality(tokens[:tail])
    run = next((place for place, token in enumerate(tokens) if token not in described), len(tokens))
    head = max((place + 1 for place, token in enumerate(tokens[:run]) if token in words.modalities), default=0)
    while head < len(tokens) and tokens[head] in words.image_words:
        head += 1
    return tokens[head:] if 0 < head < len(tokens) else tokens


# --- vocabulary ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """All concepts, and the index that finds them.

    Args:
        concepts: in the order of the file.
        by_name: canonical name to concept.
        owners: phrase key to the concepts that use the phrase (several where the words are ambiguous).
        sides: name of a pair and "left" or "right" to the one of that side.
        rows: for each row of `vectors`, the key of its phrase.
        vectors: (N, D) int8, the text vectors of the phrases, times 127.
    """

    concepts: tuple[Concept, ...]
    by_name: Mapping[str, Concept]
    owners: Mapping[str, tuple[Concept, ...]]
    sides: Mapping[tuple[str, str], Concept]
    rows: tuple[str, ...]
    vectors: NDArray[np.int8]

    @staticmethod
    @lru_cache(maxsize=1)
    def load() -> Vocabulary:
        """The vocabulary that ships inside the package."""
        concepts = _read_concepts()
        with files("lexitome").joinpath("assets/concepts.npz").open("rb") as file, np.load(file) as stored:
            lines = bytes(stored["phrases"]).decode().split("\n")
            vectors = stored["vectors"]
        owners: dict[str, tuple[Concept, ...]] = {}
        for line in lines:
            key, _, numbers = line.partition("\t")
            owners[key] = tuple(concepts[int(number)] for number in numbers.split(","))
        by_name = {concept.name: concept for concept in concepts}
        sides = {(pair, c.laterality): c for c in concepts if c.laterality for pair in c.broader}
        return Vocabulary(concepts, by_name, owners, sides, tuple(owners)[: len(vectors)], vectors)

    def get(self, name: str) -> Concept | None:
        """The concept with this canonical name."""
        return self.by_name.get(name)

    def ancestors(self, concept: Concept) -> tuple[Concept, ...]:
        """Everything broader than `concept`, nearest first."""
        found: dict[str, Concept] = {}
        queue = list(concept.broader)
        while queue:
            broader = self.by_name[queue.pop(0)]
            if broader.name not in found:
                found[broader.name] = broader
                queue += broader.broader
        return tuple(found.values())

    def resolve(self, text: str, modality: str = "") -> Resolution:
        """The concept that `text` names.

        Args:
            text: free text, any of the languages of the synonyms.
            modality: of the image, as DICOM word, family or plain words; settles words that mean different things in
                different images. A modality that the text itself names ("vessels in a fundus photo") counts as well.
        """
        context = modality_families(modality)
        readings = list(_readings(text))
        for phrase, named in readings:
            candidates = self._sided(phrase)
            if candidates:
                return self._choose(text, phrase, candidates, context or named)
        return self._by_meaning(text, readings[-1][0])

    def _sided(self, phrase: Phrase) -> tuple[Concept, ...]:
        """Concepts that use exactly these words for this side: "renal, left" is the left one of the kidneys."""
        direct = self.owners.get(phrase.key, ())
        if direct or phrase.side not in ("left", "right"):
            return direct
        pairs = self.owners.get(Phrase(phrase.words, "").key, ())
        return tuple(self.sides[pair.name, phrase.side] for pair in pairs if (pair.name, phrase.side) in self.sides)

    def _choose(
        self, text: str, phrase: Phrase, candidates: tuple[Concept, ...], families: frozenset[str]
    ) -> Resolution:
        """One of the concepts that share a phrase: seen in this modality, then by name, then the broadest of them."""
        fitting = [concept for concept in candidates if families.intersection(concept.modalities)] or list(candidates)
        named = [concept for concept in fitting if parse(concept.name).key == phrase.key]
        broadest = [
            concept
            for concept in fitting
            if all(concept is other or concept in self.ancestors(other) for other in fitting)
        ]
        chosen = next(iter(named or broadest), None)
        others = tuple(concept.name for concept in (*fitting, *candidates) if concept is not chosen)
        how: How = "uncoded" if chosen is None else "synonym"
        if chosen is not None and parse(chosen.name).plain == phrase.plain:
            how = "exact"
        return Resolution(text, chosen, how, 1.0, tuple(dict.fromkeys(others)))

    def _by_meaning(self, text: str, phrase: Phrase) -> Resolution:
        """The concept of the same side that is nearest and explains every word of the text, if one does well enough."""
        if not phrase.plain or _CJK.search(phrase.plain):
            return Resolution(text, None, "uncoded", 0.0, self._similar_spelling(phrase))
        ranked = self._ranked(phrase)
        if self._may_guess(phrase):
            near = {name: cosine for name, (cosine, _) in ranked.items() if cosine >= MIN_SIMILARITY}
            fit = {name: self._fit(phrase, self.by_name[name]) for name in near}
            best = max(near, key=lambda name: near[name] * fit[name], default="")
            # "Organ" is not "liver organ": the word that says which one is missing.
            if best and fit[best] >= MIN_COVERAGE and not _content(phrase) < _content(ranked[best][1]):
                others = tuple(name for name in ranked if name != best)
                return Resolution(text, self.by_name[best], "meaning", near[best], others)
        unsided = (concept.name for concept in self.owners.get(Phrase(phrase.words, "").key, ()))
        worth_naming = (name for name, (cosine, _) in ranked.items() if cosine >= MIN_SUGGESTION)
        alternatives = dict.fromkeys((*unsided, *self._similar_spelling(phrase), *worth_naming))
        similarity = max((cosine for cosine, _ in ranked.values()), default=0.0)
        return Resolution(text, None, "uncoded", similarity, tuple(alternatives)[:_SHORTLIST])

    def _may_guess(self, phrase: Phrase) -> bool:
        """Likeness of vectors is blind to "and", "not" and sides: words that hold them must be listed to be known.

        Where the words without their side name something, that thing has no such side ("left liver vein").
        """
        words = _Wording.load()
        if phrase.side == "?" or (words.joiners | words.negations).intersection(phrase.words):
            return False
        return not (phrase.side and Phrase(phrase.words, "").key in self.owners)

    def _ranked(self, phrase: Phrase) -> dict[str, tuple[float, Phrase]]:
        """Names of the nearest concepts of the phrase's side: the cosine of the nearest phrase of each, and that."""
        vector = TextEncoder.load().embed([phrase.plain])[0]
        cosines = self.vectors.astype(np.float32) @ vector / 127
        side = "" if phrase.side == "?" else phrase.side
        ranked: dict[str, tuple[float, Phrase]] = {}
        for row in np.argsort(-cosines, kind="stable")[:200]:
            row_side, _, words = self.rows[row].partition("|")
            if row_side in ("", side):
                nearest = Phrase(tuple(words.split()), side)
                for concept in self._sided(nearest):
                    ranked.setdefault(concept.name, (float(cosines[row]), nearest))
            if len(ranked) >= _SHORTLIST:
                break
        return ranked

    def _fit(self, phrase: Phrase, concept: Concept) -> float:
        """How well the concept explains the least explained word of the phrase, as a cosine.

        "Fracture of the moon" is no bone fracture, since nothing about that explains the moon.
        """
        kinds = (concept, *self.ancestors(concept))
        names = (name for kind in kinds for name in (kind.name, kind.anatomy, *kind.synonyms))
        known = {word for name in names if not _CJK.search(name) for word in _content(parse(name))}
        asked = _content(phrase) - known
        return 0.0 if _Wording.load().places.intersection(asked) else _explained(asked, known)

    def _similar_spelling(self, phrase: Phrase) -> tuple[str, ...]:
        """Names of concepts with a phrase that differs by a slip of the finger."""
        near = [key for key in self.owners if abs(len(key) - len(phrase.key)) <= 2]
        found = difflib.get_close_matches(phrase.key, near, n=3, cutoff=0.8)
        return tuple(dict.fromkeys(concept.name for key in found for concept in self.owners[key]))


def _explained(words: set[str], known: set[str]) -> float:
    """Cosine of the least explained of `words` with the known word that explains it best; 1 without words."""
    if not words or not known:
        return 0.0 if words else 1.0
    encoder = TextEncoder.load()
    rows, columns = sorted(words), sorted(known)
    likeness = encoder.embed(rows) @ encoder.embed(columns).T
    # "car" lies near "carina" only because they share a word piece.
    pieces = [set(word_pieces(word, encoder.vocabulary)) for word in columns]
    for row, word in enumerate(rows):
        own = set(word_pieces(word, encoder.vocabulary))
        likeness[row, [bool(own & other) for other in pieces]] = 0
    return float(likeness.max(axis=1).min())


def _content(phrase: Phrase) -> set[str]:
    words = _Wording.load()
    return {_base(word) for word in phrase.words} - words.ordering - words.generic


def _read_concepts() -> tuple[Concept, ...]:
    records = json.loads(files("lexitome").joinpath("assets/concepts.json").read_bytes())
    return tuple(
        Concept(
            name=record["name"],
            synonyms=(*record["synonyms"], *record.get("synonyms_ko", ()), *record.get("synonyms_zh", ())),
            modalities=tuple(record.get("modalities", ())),
            anatomy=record.get("anatomy", ""),
            code=Code(**record["code"]) if record["code"] else None,
            laterality=record.get("laterality", ""),
            broader=tuple(record.get("broader", ())),
        )
        for record in records
    )


# --- index ---------------------------------------------------------------------------------------------------------


def build_index() -> bytes:
    """The content of ``concepts.npz``: every phrase with its owners, and the text vectors of those in Latin letters.

    ``phrases`` holds lines "key TAB owner,owner"; the first N of them have a row in ``vectors`` (N, D) int8. A phrase
    takes the vector of its first wording, without the side. The same concepts and text vectors give the same bytes.
    """
    owners: dict[str, dict[int, None]] = {}
    wording: dict[str, str] = {}
    for number, concept in enumerate(_read_concepts()):
        for name in (concept.name, *concept.synonyms):
            phrase = parse(name)
            owners.setdefault(phrase.key, {})[number] = None
            wording.setdefault(phrase.key, phrase.plain)
    keys = sorted(owners, key=lambda key: (_CJK.search(key) is not None, key))
    latin = [wording[key] for key in keys if not _CJK.search(key)]
    vectors = np.rint(TextEncoder.load().embed(latin) * 127).astype(np.int8)
    lines = "\n".join(f"{key}\t{','.join(map(str, owners[key]))}" for key in keys)
    buffer = io.BytesIO()
    np.savez(buffer, phrases=np.frombuffer(lines.encode(), dtype=np.uint8), vectors=vectors)
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """Resolve texts, or build the index: ``python -m lexitome.concepts [--build] [--modality M] TEXT ...``."""
    parser = argparse.ArgumentParser(prog="lexitome.concepts", description=main.__doc__)
    parser.add_argument("--build", action="store_true", help="write assets/concepts.npz")
    parser.add_argument("--modality", default="")
    parser.add_argument("texts", nargs="*")
    options = parser.parse_args(arguments)
    if options.build:
        path = Path(str(files("lexitome").joinpath("assets/concepts.npz")))
        draft = path.with_suffix(".npz.part")
        draft.write_bytes(build_index())
        os.replace(draft, path)
        print(f"{path}: {path.stat().st_size} bytes")
    for text in options.texts:
        found = Vocabulary.load().resolve(text, options.modality)
        name = found.concept.name if found.concept else "-"
        print(f"{text}: {name} ({found.how}, {found.similarity:.2f}); also {', '.join(found.alternatives) or '-'}")


if __name__ == "__main__":
    main()
