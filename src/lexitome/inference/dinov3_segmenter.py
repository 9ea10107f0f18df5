"""A trained DINOv3 segmenter that answers users: volume and words to `Segmentation`. Needs torch and transformers.

It knows its targets and nothing else: words that mean none of them are refused, with the list of those that do. Boxes
bound the answer to words. Volumes are answered slice by slice, or stack by stack, in windows, on their own grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from lexitome.concepts import Concept
from lexitome.data.dataset import Target
from lexitome.data.intensity import View, choose_view, to_pictures
from lexitome.data.patches import Layout
from lexitome.errors import InputError
from lexitome.inference.dinov3_card import WEIGHTS, Card
from lexitome.inference.prompting import inside_boxes
from lexitome.inference.tiled import Windows, answered, asker, masks_from
from lexitome.models.dinov3.decoders import DECODERS
from lexitome.models.dinov3.segmentation import DinoSegmenter, empty_segmenter
from lexitome.models.reading import hash_of
from lexitome.prompts import Box, Query
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import Volume

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class DinoEncoded:
    """An image and what is needed to look at it; slices are cut when they are asked for."""

    volume: Volume
    view: View
    seconds: float


@dataclass(frozen=True, eq=False)
class Maps:
    """Answers to all slices along the view.

    Args:
        masks: (T, slice, row, column) of what was asked.
        scores: (T,) mean probability inside of each mask, 0 of an empty one.
        likely: like the masks, probabilities; None where nobody asked for them.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float64]
    likely: NDArray[np.float16] | None


@dataclass(frozen=True, eq=False)
class DinoVolumeSegmenter:
    """A loaded model; threads may share it."""

    card: Card
    net: DinoSegmenter
    folder: Path
    windows: Windows
    load_seconds: float = field(default=0.0)

    @staticmethod
    def load(model: str | Path, *, threads: int | None = None) -> DinoVolumeSegmenter:
        """
        Args:
            model: a folder with `segmenter.json`.
            threads: of torch, for the whole process; by default as they are.

        Raises:
            InputError: it is no such folder, or damaged.
        """
        began = time.perf_counter()
        if threads is not None:
            torch.set_num_threads(threads)
        folder = Path(model).expanduser()
        card = Card.load(folder)
        if card.decoder not in DECODERS:
            raise InputError(folder, f"has an unknown decoder {card.decoder!r}", "Train it again.")
        net = empty_segmenter(card.trunk, card.decoder, len(card.targets) + card.exclusive, card.taps)
        try:
            net.load_state_dict(load_file(folder / WEIGHTS))
            found = hash_of((folder / WEIGHTS,))
        except Exception as error:  # safetensors and torch raise several kinds
            cause = f"cannot be used ({str(error).splitlines()[0]})"
            raise InputError(folder / WEIGHTS, cause, "Train it again.") from error
        if found != card.sha256:
            cause = "is not the file that the card describes"
            raise InputError(folder / WEIGHTS, cause, "Copy the whole folder again.")
        windows = Windows(card.side, card.depth)
        return DinoVolumeSegmenter(card, net.eval().requires_grad_(False), folder, windows, time.perf_counter() - began)

    def understand(self, query: Query, modality: str = "") -> tuple[Target, Concept | None]:
        """
        Raises:
            InputError: it has no words, or words that it was not taught, or a place that is no box.
        """
        known = ", ".join(target.name for target in self.card.answered)
        if query.text is None or not all(isinstance(place, Box) for place in query.spatial):
            cause = "answers words, and boxes that bound them, but no other prompt"
            raise InputError(f"model {self.card.name}", cause, f"Say what to find with -t: {known}.")
        found = self.card.find(query.text.text, modality)
        if found is None:
            raise InputError(f"model {self.card.name}", f"was not taught {query.text.text!r}", f"It knows: {known}.")
        return found

    def encode(self, volume: Volume, queries: Sequence[Query] = ()) -> DinoEncoded:
        """Only refuses what cannot be asked, see `understand`; the network runs once the targets are known."""
        began = time.perf_counter()
        for query in queries:
            self.understand(query, volume.modality)
        return DinoEncoded(volume, choose_view(volume), time.perf_counter() - began)

    def decode(
        self,
        encoded: DinoEncoded,
        queries: Sequence[Query],
        *,
        flips: bool | None = None,
        probabilities: bool = False,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Answer each query with a mask on the grid of the volume.

        Args:
            flips: average with the answers about the mirrored slices; only if it was trained on such, which is also
                when it is done by default in pictures (None). It doubles the time.
            probabilities: fill `Finding.probability`.

        Raises:
            InputError: see `understand`.
        """
        began = time.perf_counter()
        told = [self.understand(query, encoded.volume.modality) for query in queries]
        mirrored = self.card.mirrored and (encoded.volume.is_2d if flips is None else flips)
        maps = self.ask(encoded, [target for target, _ in told], mirrored, probabilities=probabilities, told=progress)
        findings = []
        for index, (query, (_, concept)) in enumerate(zip(queries, told, strict=True)):
            mask = np.ascontiguousarray(encoded.view.undo(maps.masks[index]))
            if query.spatial:
                mask &= inside_boxes(query, encoded.volume)
            likely = None if maps.likely is None else np.ascontiguousarray(encoded.view.undo(maps.likely[index]))
            found = bool(mask.any())
            notes = () if found or not query.spatial else ("nothing of it inside the box",)
            score = float(maps.scores[index]) if found else 0.0
            findings.append(Finding(query.name, mask, float(found), score, concept, notes, None, likely))
        return Segmentation(encoded.volume, tuple(findings), self._provenance(encoded, began, mirrored))

    def ask(
        self, encoded: DinoEncoded, targets: Sequence[Target], mirrored: bool, *, probabilities: bool,
        told: Progress | None = None,
    ) -> Maps:  # fmt: skip
        """Every slice once for all targets."""
        card, volume, view = self.card, encoded.volume, encoded.view
        shape = tuple(volume.grid[axis] for axis in view.order)
        masks = np.zeros((len(targets), *shape), np.bool_)
        likely = np.zeros((len(targets), *shape), np.float16) if probabilities else None
        pictures = self._pictures(volume, view)
        ask = asker(self.net, card.normalisation, exclusive=card.exclusive, is_8_bit=pictures.dtype == np.uint8)
        windows = replace(self.windows, mirrored=mirrored)
        layout = Layout(card.side, card.spacing, card.depth)
        mm = volume.spacing[::-1]
        grid = layout.grid(shape[1:], (mm[view.order[1]], mm[view.order[2]]) if volume.spacing_known else None)
        sums = np.zeros(len(targets))
        for first, part in _parts(pictures, card.depth):
            found = answered(part, grid, windows, ask)
            found = found if card.depth > 1 else found[:, None]
            chosen = masks_from(found, exclusive=card.exclusive)
            here = slice(first, first + chosen.shape[1])
            for index, target in enumerate(targets):
                channels = card.channels(target)
                planes = found[[channel + card.exclusive for channel in channels]]
                # Of exclusive classes the union is the sum, of others at least the likeliest.
                union, inside = planes.sum(0) if card.exclusive else planes.amax(0), chosen[channels].any(0)
                masks[index, here], sums[index] = inside.numpy(), sums[index] + float(union[inside].sum())
                if likely is not None:
                    likely[index, here] = union.numpy()
            if told is not None:
                told(here.stop, shape[0])
        return Maps(masks, sums / np.maximum(masks.sum((1, 2, 3)), 1), likely)

    def _pictures(self, volume: Volume, view: View) -> NDArray[np.generic]:
        """(slice, C, row, column) as the network was trained on."""
        if self.card.spacing is not None:
            return self.card.normalisation.prepare(volume, view)
        return np.moveaxis(to_pictures(volume, self.card.normalisation.window, view), -1, 1)

    def _provenance(self, encoded: DinoEncoded, began: float, mirrored: bool) -> dict[str, object]:
        about = self.card.about
        seconds = {"load": self.load_seconds, "encode": encoded.seconds, "decode": time.perf_counter() - began}
        return {
            "model": self.card.name, "folder": str(self.folder), "weights_sha256": self.card.sha256,
            "weights_licence": about.get("licence", ""), "weights_duties": about.get("duties", ""),
            "research_only": bool(about.get("research_only", True)), "device": "cpu",
            "torch": torch.__version__, "flips": mirrored, "seconds": seconds,
        }  # fmt: skip


def _parts(pictures: NDArray[Any], depth: int) -> Iterator[tuple[int, Tensor]]:
    """(first slice, (C, h, w)) of each slice; of networks in 3D all slices together, (C, Z, h, w)."""
    if depth > 1:
        yield 0, torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures, 1, 0)).astype(np.float32))
        return
    for index, picture in enumerate(pictures):
        yield index, torch.from_numpy(np.ascontiguousarray(picture).astype(np.float32))
