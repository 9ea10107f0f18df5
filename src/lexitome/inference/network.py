"""The two graphs of a model, run by ONNX Runtime: a picture to features, features and prompts to answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lexitome.inference.looks import Features
from lexitome.models.catalog import ModelCard, weights_hash

Run = Callable[[list[str], dict[str, NDArray[np.float32]]], list[NDArray[np.float32]]]
"""Names of outputs and values of inputs to values of the outputs: `onnxruntime.InferenceSession.run`."""


class Raw(NamedTuple):
    """What the decoder says of Q queries about one picture of S pixels."""

    logits: NDArray[np.float32]  # (Q, S, S) of the mask
    presence: NDArray[np.float32]  # (Q,) logits
    centres: NDArray[np.float32]  # (Q, S/2, S/2) logits that an object's centre is here
    offsets: NDArray[np.float32]  # (Q, 2, S/2, S/2) way (y, x) to it, in units of 16 pixels of this map

    def mirror(self) -> Raw:
        """The answers about a mirrored picture, as answers about the picture."""
        offsets = self.offsets[..., ::-1] * np.array([1, -1], np.float32)[:, None, None]
        return Raw(self.logits[..., ::-1], self.presence, self.centres[..., ::-1], offsets)


@dataclass(frozen=True, eq=False)
class Network:
    """A loaded model; holds no image, and threads may share it."""

    run_encoder: Run
    run_decoder: Run
    weights: str

    @staticmethod
    def load(card: ModelCard, threads: int | None = None) -> Network:
        """Args:
            threads: of ONNX Runtime; by default every core.

        Raises:
            ValueError: the weights on disk are not the ones the card describes.
        """
        encoder, decoder = (card.files.joinpath(f"{part}.onnx").read_bytes() for part in ("encoder", "decoder"))
        found = weights_hash(encoder, decoder)
        if found != card.sha256:
            raise ValueError(
                f"weights of {card.name!r} are damaged (SHA-256 {found[:12]}, expected {card.sha256[:12]}); "
                "reinstall the package, or export the model again"
            )
        return Network(_session(encoder, threads), _session(decoder, threads), found)

    def encode(self, picture: NDArray[np.float32]) -> Features:
        """(1, 3, S, S), 0..255."""
        return Features(*self.run_encoder(list(Features._fields), {"pictures": picture}))

    def decode(self, features: Features, text: NDArray[np.float32], spatial: NDArray[np.float32]) -> Raw:
        """Text vectors (Q, 128) and maps (Q, 4, S/4, S/4)."""
        inputs = {**features._asdict(), "text": text, "spatial": spatial}
        return Raw(*self.run_decoder(list(Raw._fields), inputs))


def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -50, 50))), dtype=np.float32)


def _session(graph: bytes, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    run: Run = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run
    return run
