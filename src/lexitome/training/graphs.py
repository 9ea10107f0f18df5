"""The two ONNX graphs of a compact model: made from torch, run by ONNX Runtime, compared with torch.

Both take square pictures of any side that is a multiple of 32. Constants are not folded when they are made, so that
every weight keeps its torch name (`models.compact_weights`); the runtime folds them when it loads a graph.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.models.compact import SPATIAL_CHANNELS, SPATIAL_STRIDE, CompactNet, Decoded, Features

OPSET = 17
TRACED_SIDE = 96
COMPARED_SIDES = (160, 320, 512)
FEATURES = Features._fields
OUTPUTS = Decoded._fields[:4]
OFFSETS = "offsets"
"""The output that is compared as it stands; the others are logits, and compared as probabilities."""


class Pair(NamedTuple):
    """Serialised graphs."""

    encoder: bytes
    decoder: bytes


class EncoderGraph(nn.Module):
    """The encoder, below a name that makes its weights those of `CompactNet`."""

    def __init__(self, model: CompactNet) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(pictures))


class DecoderGraph(nn.Module):
    """The decoder with flat inputs: four feature maps of one image, then text and spatial maps of its queries."""

    def __init__(self, model: CompactNet) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self, tokens: Tensor, skip8: Tensor, skip4: Tensor, skip2: Tensor, text: Tensor, spatial: Tensor
    ) -> tuple[Tensor, ...]:
        decoded = self.decoder(Features(tokens, skip8, skip4, skip2), text, spatial)
        return tuple(getattr(decoded, name) for name in OUTPUTS)


def export_graphs(model: CompactNet) -> Pair:
    """Graphs with float32 weights. Encoder: `pictures` (1, 3, S, S) to `FEATURES`; decoder: those, `text` (Q, T) and
    `spatial` (Q, 4, S/4, S/4) to `OUTPUTS`.

    Raises:
        ValueError: the model has object queries, which the graphs do not answer for.
    """
    if model.config.object_queries:
        raise ValueError("a model with object queries cannot be exported: nothing reads their answers")
    was_training = model.training
    pictures = torch.rand(1, 3, TRACED_SIDE, TRACED_SIDE) * 255
    text, spatial = torch.randn(2, model.config.text_dim), torch.zeros(2, *_map_shape(TRACED_SIDE))
    with torch.no_grad():
        features = model.encoder(pictures)
    maps: dict[str, dict[int, str]] = {name: {2: f"{name}_rows", 3: f"{name}_columns"} for name in FEATURES}
    encoder = _export(EncoderGraph(model), (pictures,), ["pictures"], FEATURES, {
        "pictures": {2: "rows", 3: "columns"}, **maps,
    })  # fmt: skip
    decoder = _export(DecoderGraph(model), (*features, text, spatial), [*FEATURES, "text", "spatial"], OUTPUTS, {
        **maps, "text": {0: "queries"}, "spatial": {0: "queries", 2: "map_rows", 3: "map_columns"},
        "logits": {0: "queries", 1: "rows", 2: "columns"}, "presence": {0: "queries"},
        "centres": {0: "queries", 1: "half_rows", 2: "half_columns"},
        "offsets": {0: "queries", 2: "half_rows", 3: "half_columns"},
    })  # fmt: skip
    model.train(was_training)
    return Pair(encoder, decoder)


def _export(
    module: nn.Module, arguments: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
) -> bytes:  # fmt: skip
    """In training mode, where the exporter leaves equal weights apart and unchanged; no layer of ours behaves
    differently in it."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder) / "graph.onnx"
        warnings.simplefilter("ignore")  # of the tracer: paddings are meant to be constants of the graph
        torch.onnx.export(
            module.train(), arguments, file, input_names=list(inputs), output_names=list(outputs), dynamic_axes=axes,
            opset_version=OPSET, dynamo=False, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
        return file.read_bytes()


class Session:
    """Graphs loaded by ONNX Runtime. Threads may share it."""

    def __init__(self, graphs: Pair, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for graph in graphs
        )

    def __call__(
        self, picture: NDArray[np.float32], text: NDArray[np.float32], spatial: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        """`OUTPUTS` of Q queries about one picture (1, 3, S, S) in 0..255."""
        features = self._encoder.run(None, {"pictures": picture})
        given = {**dict(zip(FEATURES, features, strict=True)), "text": text, "spatial": spatial}
        return dict(zip(OUTPUTS, self._decoder.run(None, given), strict=True))


def differences(model: CompactNet, graphs: Pair, sides: Sequence[int] = COMPARED_SIDES) -> dict[str, float]:
    """For each output the largest difference between the graphs and torch, over random pictures of these sides and
    queries with words, with a box, and with both."""
    session, largest = Session(graphs), dict.fromkeys(OUTPUTS, 0.0)
    generator = torch.Generator().manual_seed(0)
    for side in sides:
        picture = F.interpolate(torch.rand(1, 3, 12, 12, generator=generator) * 255, (side, side), mode="bilinear")
        text = F.normalize(torch.randn(3, model.config.text_dim, generator=generator), dim=1)
        text[0] = 0
        spatial = torch.zeros(3, *_map_shape(side))
        spatial[:2, 0, side // 32 : side // 10, side // 32 : side // 10] = 1
        with torch.no_grad():
            decoded = model.eval()(picture, text, spatial)
        found = session(picture.numpy(), text.numpy(), spatial.numpy())
        for name in OUTPUTS:
            wanted, got = getattr(decoded, name), torch.from_numpy(found[name])
            if name != OFFSETS:
                wanted, got = wanted.sigmoid(), got.sigmoid()
            largest[name] = max(largest[name], float((wanted - got).abs().max()))
    return largest


def worst_probability(found: dict[str, float]) -> float:
    """The largest difference in any probability."""
    return max(value for name, value in found.items() if name != OFFSETS)


def _map_shape(side: int) -> tuple[int, int, int]:
    return SPATIAL_CHANNELS, side // SPATIAL_STRIDE, side // SPATIAL_STRIDE
