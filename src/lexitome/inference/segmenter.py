"""Volume and queries to `Segmentation`, in two pure steps: `encode` once for an image, `decode` for its queries.

The compact model sees square pictures, one for each slice. Its two ONNX graphs are run by ONNX Runtime; nothing here
needs torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lexitome.data.intensity import SOFT_TISSUE, View, Window, choose_view, is_hounsfield, to_pictures
from lexitome.data.prompt_maps import STRIDE
from lexitome.inference.consistency import drop_specks, smooth_slices
from lexitome.inference.prompting import Understood, spatial_maps, understand
from lexitome.models.catalog import CATALOG, ModelCard, weights_hash
from lexitome.prompts import Query
from lexitome.segmentation import Finding, Segmentation
from lexitome.text import TextEncoder
from lexitome.volume import Volume

HELD_SLICES = 8
"""Up to this many slices keep their features (6 MB each) between `encode` and `decode`; longer volumes are encoded
again while they are decoded, so that memory does not grow with the number of slices."""

SLICE_PRESENCE = 0.2
"""Within a volume that holds the target, a slice shows it from this presence (the volume needs 0.5)."""

FEATURES = ("tokens", "skip8", "skip4", "skip2")
Features = tuple[NDArray[np.float32], ...]
Progress = Callable[[int, int], None]
"""Told (slices done, slices in all) while a volume is decoded."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image made ready for any number of queries; a value, safe to cache and share.

    ``features`` maps a CT window (None elsewhere) to the features of each slice, where they are held.
    """

    volume: Volume
    view: View
    features: dict[Window | None, tuple[Features, ...]]
    seconds: float


@dataclass(frozen=True, eq=False)
class SliceAnswer:
    """One query over all slices, at the network's resolution (S, S): a volume's answers must not fill the memory.

    ``probability`` (slice, S, S) float16; ``presence`` (slice,) float32, shifted so that 0.5 is the threshold that was
    chosen on validation data, whatever the concept.
    """

    probability: NDArray[np.float16]
    presence: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A loaded model. Holds no image; threads may share it."""

    card: ModelCard
    encoder: object
    decoder: object
    text: TextEncoder
    load_seconds: float
    weights: str = field(default="")

    @staticmethod
    def load(model: str = "compact", *, threads: int | None = None) -> Segmenter:
        """Load a model of the catalog.

        Args:
            threads: of ONNX Runtime; by default every core.
        Raises:
            KeyError: no such model; the message lists the names.
            ValueError: the weights on disk are not the ones the card describes.
        """
        if model not in CATALOG:
            raise KeyError(f"no model {model!r}; choose from {', '.join(CATALOG)}")
        began = time.perf_counter()
        card = CATALOG[model]
        encoder, decoder = (card.files.joinpath(f"{part}.onnx").read_bytes() for part in ("encoder", "decoder"))
        found = weights_hash(encoder, decoder)
        if found != card.sha256:
            raise ValueError(f"weights of {model!r} are damaged (SHA-256 {found[:12]}, expected {card.sha256[:12]}); "
                             "reinstall the package")  # fmt: skip
        sessions = (_session(encoder, threads), _session(decoder, threads))
        return Segmenter(card, *sessions, TextEncoder.load(), time.perf_counter() - began, found)

    def encode(self, volume: Volume) -> Encoded:
        """Features of a volume, in the default window; other CT windows are added by `decode` when asked for."""
        began = time.perf_counter()
        view = choose_view(volume)
        held = {}
        if volume.grid[view.order[0]] <= HELD_SLICES:
            window = SOFT_TISSUE if is_hounsfield(volume) else None
            held[window] = tuple(self._encode_picture(p) for p in to_pictures(volume, window))
        return Encoded(volume, view, held, time.perf_counter() - began)

    def decode(self, encoded: Encoded, queries: Sequence[Query], *, progress: Progress | None = None) -> Segmentation:
        """Answer each query with a mask on the grid of the volume.

        Raises:
            ValueError: a box or point lies outside the image.
        """
        began = time.perf_counter()
        volume = encoded.volume
        asked = [understand(query, self.card, volume.modality) for query in queries]
        answers = self._answer_slices(encoded, asked, progress)
        findings = tuple(self._finding(encoded, u, a) for u, a in zip(asked, answers, strict=True))
        return Segmentation(volume, findings, self._provenance(encoded, time.perf_counter() - began))

    def probabilities(self, encoded: Encoded, queries: Sequence[Query]) -> list[SliceAnswer]:
        """The network's answers before thresholds, slice by slice in the view's orientation; for evaluation."""
        return self._answer_slices(encoded, [understand(q, self.card, encoded.volume.modality) for q in queries])

    def _answer_slices(
        self, encoded: Encoded, asked: Sequence[Understood], progress: Progress | None = None
    ) -> list[SliceAnswer]:
        volume, view, side = encoded.volume, encoded.view, self.card.side
        slices = volume.grid[view.order[0]]
        maps = [spatial_maps(u.query, view, volume, side) for u in asked]
        vectors = self.text.embed([u.words for u in asked])
        answers = [SliceAnswer(np.zeros((slices, side, side), np.float16), np.zeros(slices, np.float32)) for _ in asked]
        hounsfield = is_hounsfield(volume)  # looks at every voxel: once, not for each query
        by_window: dict[Window | None, list[int]] = {}
        for i, u in enumerate(asked):
            window = u.trained.window if u.trained is not None else None
            by_window.setdefault((window or SOFT_TISSUE) if hounsfield else None, []).append(i)
        thresholds = [u.trained.threshold if u.trained else self.card.default_threshold for u in asked]
        even = np.log(thresholds) - np.log1p(np.negative(thresholds))  # the logit that means "as likely as not"
        nowhere = np.zeros((3, side // STRIDE, side // STRIDE), np.float32)
        for turn, (window, members) in enumerate(by_window.items()):
            for index, features in enumerate(self._features(encoded, window)):
                here = [i for i in members if asked[i].words or index in maps[i]]
                if here:
                    spatial = np.stack([maps[i].get(index, nowhere) for i in here])
                    prompts = {"text": vectors[here], "spatial": spatial}
                    logits, presence = self._run(self.decoder, dict(zip(FEATURES, features, strict=True)) | prompts)
                    for row, i in enumerate(here):
                        answers[i].probability[index] = _sigmoid(logits[row])
                        answers[i].presence[index] = 1.0 if index in maps[i] else _sigmoid(presence[row] - even[i])
                if progress is not None:
                    progress(turn * slices + index + 1, len(by_window) * slices)
        return answers

    def _finding(self, encoded: Encoded, understood: Understood, answer: SliceAnswer) -> Finding:
        """Threshold, make slices consistent, and turn back to the grid of the volume."""
        best = np.sort(answer.presence)[::-1][: 1 + len(answer.presence) // 20]
        presence = float(best.mean())  # of the twentieth of the slices that show it best
        order = encoded.view.order
        mask = np.zeros([encoded.volume.grid[axis] for axis in order], dtype=bool)
        score = 0.0
        if presence >= 0.5:
            single = len(answer.presence) == 1
            shown = answer.presence >= (0.5 if single else SLICE_PRESENCE)
            smooth = smooth_slices(answer.probability.astype(np.float32) * shown[:, None, None])
            for index in range(len(mask)):
                mask[index] = _resize(smooth[index], *mask.shape[1:]) >= 0.5
            mask = mask if single else drop_specks(mask)
            score = _mean_inside(smooth, mask)
        back = np.ascontiguousarray(encoded.view.undo(mask))
        return Finding(understood.query.name, back, presence, score, understood.concept, understood.notes)

    def _features(self, encoded: Encoded, window: Window | None) -> Iterator[Features]:
        """Features of every slice in order, held or computed while they are needed."""
        if window in encoded.features:
            yield from encoded.features[window]
            return
        for picture in to_pictures(encoded.volume, window):
            yield self._encode_picture(picture)

    def _encode_picture(self, picture: NDArray[np.uint8]) -> Features:
        """(H, W, 3) uint8 to the encoder's outputs."""
        from PIL import Image

        side = self.card.side
        square = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR), np.float32)
        return tuple(self._run(self.encoder, {"pictures": square.transpose(2, 0, 1)[None]}))

    @staticmethod
    def _run(session: object, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = session.run(None, inputs)  # type: ignore[attr-defined]
        return outputs

    def _provenance(self, encoded: Encoded, decode_seconds: float) -> dict[str, object]:
        import onnxruntime

        return {
            "model": self.card.name,
            "weights_sha256": self.weights,
            "weights_licence": self.card.weights_licence,
            "research_only": self.card.research_only,
            "device": "cpu",
            "onnxruntime": onnxruntime.__version__,
            "seconds": {"load": self.load_seconds, "encode": encoded.seconds, "decode": decode_seconds},
        }


def _session(graph: bytes, threads: int | None) -> object:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -50, 50))), dtype=np.float32)


def _mean_inside(probability: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Mean of (slice, S, S) probabilities inside a (slice, H, W) mask; 0 where it is empty."""
    total = sum(
        float(_resize(probability[index], *mask.shape[1:])[mask[index]].sum(dtype=np.float64))
        for index in np.flatnonzero(mask.any(axis=(1, 2)))
    )
    return total / max(int(mask.sum()), 1)


def _resize(probability: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(S, S) to (H, W), bilinear."""
    from PIL import Image

    return np.asarray(Image.fromarray(probability).resize((width, height), Image.Resampling.BILINEAR))
