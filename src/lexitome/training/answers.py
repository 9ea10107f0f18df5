"""What an exported model answers about cached pictures; how calibration asks it, with every core at work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch.nn import functional as F

from lexitome.data.cache import CachedDataset
from lexitome.data.dataset import Target
from lexitome.data.prompt_maps import no_place
from lexitome.text import TextEncoder
from lexitome.training.graphs import Session


@dataclass(frozen=True, eq=False)
class Question:
    """Targets asked by their names of one cached picture, shown at `side`; ``mirrored``: and of its mirror image, the
    answers averaged."""

    cached: CachedDataset
    index: int
    targets: tuple[Target, ...]
    side: int
    mirrored: bool = False


@dataclass(frozen=True, eq=False)
class Answer:
    """``logits`` (T, S, S) of the masks, ``presence`` (T,) probabilities."""

    logits: NDArray[np.float32]
    presence: NDArray[np.float64]


Ask = Callable[[Question], Answer]


def asking(session: Session) -> Ask:
    """Ask by text only, with pictures resized as the `Segmenter` does."""
    text = TextEncoder.load()

    def ask(question: Question) -> Answer:
        picture = torch.from_numpy(np.array(question.cached.images[question.index])).permute(2, 0, 1)[None].float()
        shown = F.interpolate(picture, (question.side,) * 2, mode="bilinear", antialias=True).contiguous().numpy()
        vectors = text.embed([target.name for target in question.targets])
        nowhere = np.repeat(no_place(question.side)[None], len(vectors), axis=0)
        found = session(shown, vectors, nowhere)
        answer = Answer(found["logits"], expit(found["presence"].astype(np.float64)))
        if not question.mirrored:
            return answer
        other = session(np.ascontiguousarray(shown[..., ::-1]), vectors, nowhere)
        presence = (answer.presence + expit(other["presence"].astype(np.float64))) / 2
        share = (expit(answer.logits) + expit(other["logits"][..., ::-1])) / 2
        return Answer(logit(share.clip(1e-6, 1 - 1e-6)), presence)

    return ask


def answers(ask: Ask, questions: Sequence[Question], threads: int) -> Iterator[tuple[Question, Answer]]:
    """Every question with its answer, in order; `threads` are asked at a time."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(questions), 64):  # not all at once: answers are large
            part = questions[start : start + 64]
            yield from zip(part, pool.map(ask, part), strict=True)


def validation_rows(cached: CachedDataset) -> list[int]:
    return [index for index, row in enumerate(cached.rows) if row.split == "val"]


def annotated(cached: CachedDataset, index: int) -> list[Target]:
    """The targets that were looked for in the case of a cached picture."""
    unknown = set(cached.rows[index].unknown)
    return [target for target in cached.dataset.targets if not set(target.labels) & unknown]


def shows(cached: CachedDataset, index: int, target: Target) -> bool:
    return bool(set(target.codes) & set(cached.rows[index].present))


def resized(logits: NDArray[np.float32], shape: Iterable[int]) -> NDArray[np.float32]:
    """(T, S, S) logits at another resolution, bilinear."""
    return F.interpolate(torch.from_numpy(logits)[:, None], tuple(shape), mode="bilinear")[:, 0].numpy()
