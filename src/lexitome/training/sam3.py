"""What the engine trains when it trains SAM3: batches, objective, validation.

The objective is that of `losses.set_prediction`. A query is a concept asked about a picture; concepts that the picture
lacks are asked too, and teach presence. With mixed prompts some queries give a box: as in Meta's training
(`TextQueryToVisual`) it is an exemplar, the answer is still everything of its kind, and the words may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.data.batches import BatchSource, Draw, Picture
from lexitome.data.cache import CachedDataset
from lexitome.data.dataset import Target
from lexitome.errors import InputError
from lexitome.losses import set_prediction
from lexitome.losses.boxes import boxes_of_masks
from lexitome.losses.set_prediction import ObjectTargets, SetPrediction, SetPredictionConfig
from lexitome.models.sam3.network import PADDING, Outputs, Prompts
from lexitome.models.sam3.tokens import Tokens
from lexitome.training.answers import Answer, Question, annotated, shows
from lexitome.training.compact import SURELY_EMPTY, Share
from lexitome.training.sides import picture_dice
from lexitome.training.validation import spread

VISUAL = "visual"
"""What the model is told when a box stands for words."""
POSITIVE = 1
BOX_NOISE = 0.1
"""Deviation of an exemplar's edges, in lengths of its sides."""
MOST_NOISE = 20 / 1008
"""Bound of that noise, in sides of the picture: 20 pixels where Meta trains."""
PRESENT = 0.5
"""Probability from which validation takes a concept to be there."""
LEAST_AREA = 25 / 1008**2
"""A noisy box of less is given without noise."""


@dataclass(frozen=True)
class Sam3Sampling:
    """Which pictures a step holds and what is asked of them.

    Attributes:
        side: of the pictures; 0 takes that of the weights.
        images: of a step.
        prompts: "text" alone, or "mixed": some queries with a box.
        box_chance: with mixed prompts, of a query for something present to have a box.
        keep_words: of a query with a box to have words, too.
        share: of the steps for each size class of sets; the side is one for all.
    """

    side: int = 0
    images: int = 1
    prompts: Literal["text", "mixed"] = "text"
    box_chance: float = 0.5
    keep_words: float = 0.5
    share: Share = field(default_factory=Share)

    def __post_init__(self) -> None:
        allowed = {
            "side": self.side >= 0,
            "images": self.images > 0,
            "box_chance": 0 <= self.box_chance <= 1,
            "keep_words": 0 <= self.keep_words <= 1,
        }
        for name, fine in allowed.items():
            if not fine:
                raise InputError(f"sampling.{name}", f"{getattr(self, name)!r} is out of range", "See Sam3Sampling.")


@dataclass(frozen=True, eq=False)
class Sam3Batch:
    """N pictures, Q queries."""

    pictures: Tensor  # (N, 3, S, S) float32, -1..1
    prompts: Prompts
    targets: ObjectTargets  # masks at half resolution
    unjudged: Tensor  # (N, S, S) bool: pixels that nobody annotated, neither target nor background


@dataclass(frozen=True, eq=False)
class Sam3Task:
    """A `training.engine.Task`.

    `source` has to be made with `places=False`, since boxes are drawn here, and `lone_slice=1`, since SAM3 sees a slice
    without its neighbours. `validated`: pictures of each set.
    """

    source: BatchSource
    tokens: Tokens
    sampling: Sam3Sampling
    objective: SetPredictionConfig
    validated: int = 10

    def images(self, step: int) -> int:
        return self.sampling.images

    def batch(self, step: int, indices: range) -> Sam3Batch:
        sampling, source = self.sampling, self.source
        draw = Draw(source.size_of(step, asdict(sampling.share)), sampling.side, sampling.images)
        pictures = source.pictures(step, draw, indices)
        targets = [query_targets(picture, query) for picture in pictures for query in range(len(picture.questions))]
        exemplars = [
            self._exemplar(picture, query, np.random.default_rng((source.seed, step, index + 1, query + 1)))
            for index, picture in zip(indices, pictures, strict=True) for query in range(len(picture.questions))
        ]  # fmt: skip
        ids, mask = encode_words(self.tokens, [words for words, _ in exemplars])
        boxes = [torch.zeros(1, 4) if box is None else box[None] for _, box in exemplars]
        labels = [[PADDING if box is None else POSITIVE] for _, box in exemplars]
        given = 1 if sampling.prompts == "mixed" else 0  # the same in every part of a step
        owner = torch.arange(len(pictures)).repeat_interleave(torch.tensor([len(p.questions) for p in pictures]))
        prompts = Prompts(ids, mask, owner, torch.stack(boxes)[:, :given], torch.tensor(labels)[:, :given])
        return Sam3Batch(
            torch.stack([picture.pixels for picture in pictures]) / 127.5 - 1,
            prompts,
            ObjectTargets(
                [boxes_of_masks(masks) for masks, _ in targets],
                [masks for masks, _ in targets],
                torch.tensor([known for _, known in targets]),
            ),
            torch.from_numpy(np.stack([picture.unjudged for picture in pictures])),
        )

    def _exemplar(self, picture: Picture, query: int, rng: np.random.Generator) -> tuple[str, Tensor | None]:
        """Words of a query and its box (4,), centre form, if it has one."""
        question, sampling = picture.questions[query], self.sampling
        if sampling.prompts == "text" or not question.positive or rng.random() >= sampling.box_chance:
            return question.words, None
        box = noisy(_box_of_one(question.mask, picture.objects[query], rng), rng)
        return (question.words if rng.random() < sampling.keep_words else VISUAL), box

    def counts(self, batch: Sam3Batch) -> Tensor:
        return set_prediction.counts(batch.targets)

    def loss(self, model: nn.Module, batch: Sam3Batch, totals: Tensor) -> dict[str, Tensor]:
        outputs = model(batch.pictures, batch.prompts, twins=self.objective.one_to_many_weight > 0)
        return sam3_loss(outputs, batch, totals, self.objective)

    def validate(self, model: nn.Module) -> dict[str, float]:
        return score_text_only(model, self.source.sets, self.tokens, self.sampling.side, self.validated)


def sam3_loss(outputs: Outputs, batch: Sam3Batch, totals: Tensor, objective: SetPredictionConfig) -> dict[str, Tensor]:
    """Terms as sums over this batch divided by `totals` (see `losses.set_prediction.counts`)."""
    semantic, masks, twin_masks = outputs.semantic, outputs.masks, outputs.twin_masks
    if batch.unjudged.any():  # no loss, no gradient there: the target is 0
        hidden = F.adaptive_max_pool2d(batch.unjudged[:, None].float(), semantic.shape[-2:])[:, 0] > 0
        hidden = hidden[batch.prompts.image]
        semantic = semantic.masked_fill(hidden, SURELY_EMPTY)
        masks = masks.masked_fill(hidden[:, None], SURELY_EMPTY)
        twin_masks = None if twin_masks is None else twin_masks.masked_fill(hidden[:, None], SURELY_EMPTY)
    said = SetPrediction(
        outputs.logits, outputs.boxes, outputs.presence, masks, semantic,
        o2m_logits=outputs.twin_logits, o2m_boxes=outputs.twin_boxes, o2m_masks=twin_masks,
    )  # fmt: skip
    return set_prediction.set_prediction_loss(said, batch.targets, objective, totals)


def query_targets(picture: Picture, query: int) -> tuple[Tensor, bool]:
    """Masks (n, S/2, S/2) bool of the objects that answer a query, and whether they are told apart: they are where the
    annotation does so, or shows one piece. Else (a vessel tree in pieces) the whole is given, for its union alone."""
    question, ids = picture.questions[query], picture.objects[query]
    whole = torch.from_numpy(np.ascontiguousarray(question.mask[::2, ::2]))
    if not question.positive:
        return whole.new_zeros((0, *whole.shape)), True
    if ids is not None and ids.any():
        drawn = torch.from_numpy(ids)
        return drawn[None] == drawn[drawn > 0].unique()[:, None, None], True
    return whole[None], ndimage.label(whole.numpy(), np.ones((3, 3)))[1] == 1


def noisy(box: Tensor, rng: np.random.Generator) -> Tensor:
    """A centre-form box (4,) in 0..1 as a user could have drawn it."""
    centre, size = box[:2], box[2:]
    noise = torch.from_numpy(rng.normal(0, BOX_NOISE, 4).astype(np.float32)) * size.repeat(2)
    edges = torch.cat([centre - size / 2, centre + size / 2]) + noise.clamp(-MOST_NOISE, MOST_NOISE)
    low, high = edges.clamp(0, 1).split(2)
    return torch.cat([(low + high) / 2, high - low]) if (high - low).clamp_min(0).prod() > LEAST_AREA else box


def _box_of_one(mask: NDArray[np.bool_], ids: NDArray[np.int32] | None, rng: np.random.Generator) -> Tensor:
    """Centre-form box (4,) of one object or, half of the time and where they are not told apart, of the whole."""
    one: NDArray[np.bool_] = mask
    if ids is not None and ids.any() and rng.random() < 0.5:
        one = ids == rng.choice(np.unique(ids[ids > 0]))
    return boxes_of_masks(torch.from_numpy(np.ascontiguousarray(one))[None])[0]


def encode_words(tokens: Tokens, words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask (Q, T), T as long as the longest needs."""
    ids, mask = tokens.encode(words)
    longest = int(mask.sum(1).max())
    return ids[:, :longest], mask[:, :longest]


@torch.no_grad()
def answer_words(
    model: nn.Module, picture: NDArray[np.uint8], words: Sequence[str], tokens: Tokens, side: int
) -> Answer:
    """What words find in a picture (H, W, 3), decoded as the policy "semantic-presence": where presence says that there
    is nothing, the masks are empty."""
    device = next(model.parameters()).device
    shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    shown = F.interpolate(shown, (side, side), mode="bilinear", antialias=True) / 127.5 - 1
    ids, mask = encode_words(tokens, words)
    count = len(words)
    prompts = Prompts(ids, mask, torch.zeros(count, dtype=torch.long), torch.zeros(count, 0, 4),
                      torch.zeros(count, 0, dtype=torch.long))  # fmt: skip
    said: Outputs = model(shown.to(device), Prompts(*(value.to(device) for value in prompts)))
    presence = said.presence[-1].float().sigmoid()
    found = said.semantic.float().masked_fill((presence < PRESENT)[:, None, None], SURELY_EMPTY)
    return Answer(found.cpu().numpy(), presence.cpu().double().numpy())


def score_text_only(
    model: nn.Module, sets: Sequence[CachedDataset], tokens: Tokens, side: int, pictures: int, split: str = "val"
) -> dict[str, float]:
    """As `training.validation.validate_text_only`, of SAM3: mean Dice over the targets that the pictures of a split
    show, and balanced accuracy of presence."""
    dice: dict[tuple[str, str], list[float]] = {}
    right: dict[bool, list[bool]] = {True: [], False: []}
    for cached in sets:
        for index in spread([i for i, row in enumerate(cached.rows) if row.split == split], pictures):
            asked: list[Target] = [target for target in annotated(cached, index) if not target.derived]
            if not asked:
                continue
            answer = answer_words(model, cached.images[index], [target.name for target in asked], tokens, side)
            values = picture_dice(Question(cached, index, tuple(asked), side), answer)
            for target, value, presence in zip(asked, values, answer.presence, strict=True):
                shown = shows(cached, index, target)
                right[shown].append(bool(presence >= PRESENT) == shown)
                if shown:
                    dice.setdefault((cached.dataset.name, target.name), []).append(value)
    balanced = [float(np.mean(values)) for values in right.values() if values]
    measured = {"dice": [float(np.mean(values)) for values in dice.values()], "presence": balanced}
    return {name: float(np.mean(values)) for name, values in measured.items() if values}
