"""From a trained checkpoint to the files that ship: two ONNX graphs and `card.json`.

    python -m lexitome.training.export --run runs/compact --data DIR --out src/lexitome/assets/compact

Weights are the moving average, stored as float16 and computed in float32. Presence thresholds are chosen on the
validation split. The command fails if ONNX Runtime and torch differ by more than 1e-3 in probability (before the
rounding to float16), or if the files exceed the size that may travel in the wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lexitome.concepts import Vocabulary
from lexitome.data.cache import CachedDataset
from lexitome.data.folder import Dataset
from lexitome.data.intensity import LUNG, SOFT_TISSUE
from lexitome.models.catalog import weights_hash
from lexitome.models.compact import SPATIAL_STRIDE, CompactConfig, CompactNet, Features, PromptDecoder
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.training.calibrate import presence_thresholds
from lexitome.training.compact import open_sets

MAX_MB = 30.0
MAX_DIFFERENCE = 1e-3
OPSET = 17
RESEARCH_ONLY = "research use only: several training sets forbid commercial use (see `sets` and the model card)"


class DecoderGraph(nn.Module):
    """The decoder with flat inputs, as the graph has them: four feature maps of one image, text, spatial maps."""

    def __init__(self, decoder: PromptDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, tokens: Tensor, skip8: Tensor, skip4: Tensor, skip2: Tensor, text: Tensor, spatial: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, presence = self.decoder(Features(tokens, skip8, skip4, skip2), text, spatial)
        return logits, presence


def load_average(path: Path) -> CompactNet:
    """The network of a checkpoint with its averaged weights, in evaluation mode."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    config = CompactConfig(**state["model_config"])
    model = CompactNet(config, EfficientNetLite(config.backbone))
    model.load_state_dict(state["average"], strict=True)
    return model.eval()


def export_graphs(model: CompactNet, side: int) -> tuple[bytes, bytes]:
    """(encoder, decoder) as ONNX with float32 weights; the decoder takes any number of queries about one image."""
    pictures = torch.rand(1, 3, side, side) * 255
    with torch.no_grad():
        features = model.encoder(pictures)
    text = torch.randn(2, model.config.text_dim)
    spatial = torch.zeros(2, 3, side // SPATIAL_STRIDE, side // SPATIAL_STRIDE)
    names = list(Features._fields)
    outputs = ["logits", "presence"]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: side and padding are meant to be constants of the graph
        encoder, decoder = Path(folder) / "encoder.onnx", Path(folder) / "decoder.onnx"
        torch.onnx.export(
            model.encoder, (pictures,), encoder, input_names=["pictures"], output_names=names,
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
        torch.onnx.export(
            DecoderGraph(model.decoder), (*features, text, spatial), decoder,
            input_names=[*names, "text", "spatial"], output_names=outputs,
            dynamic_axes={name: {0: "queries"} for name in ("text", "spatial", *outputs)},
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
        return encoder.read_bytes(), decoder.read_bytes()


def store_half(graph: bytes) -> bytes:
    """Weights as float16 followed by a cast to float32, which the runtime folds when it loads the graph."""
    model = onnx.load_from_string(graph)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 256:
            continue
        values = numpy_helper.to_array(tensor)
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def run_graphs(
    encoder: bytes, decoder: bytes, picture: NDArray[np.float32], text: NDArray[np.float32],
    spatial: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
    """Mask and presence probabilities by ONNX Runtime of queries about one picture (1, 3, S, S)."""
    import onnxruntime

    first, second = (onnxruntime.InferenceSession(g, providers=["CPUExecutionProvider"]) for g in (encoder, decoder))
    features = dict(zip(Features._fields, first.run(None, {"pictures": picture}), strict=True))
    logits, presence = second.run(None, {**features, "text": text, "spatial": spatial})
    return 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-presence))


def largest_difference(model: CompactNet, graphs: tuple[bytes, bytes], side: int, seed: int = 0) -> float:
    """The largest difference in probability between the graphs and torch on random pictures and queries."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 12, 12, generator=generator) * 255, (side, side), mode="bilinear"
    )
    text = nn.functional.normalize(torch.randn(5, model.config.text_dim, generator=generator), dim=1)
    spatial = torch.zeros(5, 3, side // SPATIAL_STRIDE, side // SPATIAL_STRIDE)
    spatial[1, 0, 10:30, 10:30] = 1
    with torch.no_grad():
        decoded = model(picture, text, spatial)
    masks, presence = run_graphs(*graphs, picture.numpy(), text.numpy(), spatial.numpy())
    difference = max(
        np.abs(masks - decoded.logits.sigmoid().numpy()).max(),
        np.abs(presence - decoded.presence.sigmoid().numpy()).max(),
    )
    return float(difference)


def trained_concepts(datasets: Sequence[Dataset], thresholds: dict[str, float]) -> list[dict[str, object]]:
    """One entry for each concept of the vocabulary that a training set draws (`models.catalog.TrainedConcept`).

    Raises:
        ValueError: the vocabulary does not know the name of a target.
    """
    vocabulary = Vocabulary.load()
    entries: dict[str, dict[str, object]] = {}
    for dataset in sorted(datasets, key=lambda d: -len(d.cases)):
        window = dataset.window or dataset.applied_window
        for target in dataset.targets:
            resolution = vocabulary.resolve(target.name)
            concept = resolution.concept
            if concept is None or resolution.how == "meaning":
                raise ValueError(
                    f"{dataset.name}: the vocabulary does not know {target.name!r}; add it to concepts.json"
                )
            entry = entries.setdefault(concept.name, {
                "concept": concept.name, "words": target.name, "families": [], "threshold": thresholds[target.name],
                "window": list(LUNG if window[0] < -500 else SOFT_TISSUE) if window else None,
            })  # fmt: skip
            families = entry["families"]
            assert isinstance(families, list)
            if dataset.family not in families:
                families.append(dataset.family)
            if entry["window"] is None and window:
                entry["window"] = list(LUNG if window[0] < -500 else SOFT_TISSUE)
    return list(entries.values())


def write_model(
    model: CompactNet, sets: list[CachedDataset], side: int, out: Path, provenance: dict[str, object]
) -> None:
    """Export, check, calibrate and write the folder of a model, all or nothing.

    Raises:
        ValueError: the graphs differ from torch, or are too large to ship.
    """
    plain = export_graphs(model, side)
    difference = largest_difference(model, plain, side)
    if difference > MAX_DIFFERENCE:
        raise ValueError(f"ONNX differs from torch by {difference:.1e} in probability, allowed {MAX_DIFFERENCE:.0e}")
    encoder, decoder = (store_half(graph) for graph in plain)
    size_mb = (len(encoder) + len(decoder)) / 1e6
    if size_mb > MAX_MB:
        raise ValueError(f"the graphs take {size_mb:.1f} MB, allowed {MAX_MB}")
    thresholds, default = presence_thresholds(model, sets, side)
    datasets = [s.dataset for s in sets]
    card = {
        "side": side, "sha256": weights_hash(encoder, decoder), "size_mb": round(size_mb, 1),
        "onnx_difference": difference, "half_difference": largest_difference(model, (encoder, decoder), side),
        "weights_licence": RESEARCH_ONLY, "research_only": True, "default_threshold": default,
        "provenance": provenance, "trained_concepts": trained_concepts(datasets, thresholds),
        "sets": [{"name": d.name, "title": d.title, "modality": d.modality, "licence": d.licence, "source": d.source}
                 for d in datasets],
    }  # fmt: skip
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    (temporary / "encoder.onnx").write_bytes(encoder)
    (temporary / "decoder.onnx").write_bytes(decoder)
    (temporary / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(temporary, out)
    print(
        f"wrote {out}: {size_mb:.1f} MB, difference to torch {difference:.1e}, as float16 {card['half_difference']:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/compact"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=Path("src/lexitome/assets/compact"))
    parser.add_argument("--side", type=int, default=320, help="side of the pictures at inference")
    parser.add_argument("--note", default="", help="what the card's provenance should say about the run")
    args = parser.parse_args()
    checkpoint = args.run / "last.pt"
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    provenance = {
        "steps": state["step"], "train_config": state["train_config"], "model_config": state["model_config"],
        "note": args.note,
    }  # fmt: skip
    write_model(load_average(checkpoint), open_sets(args.data, args.cache), args.side, args.out, provenance)


if __name__ == "__main__":
    main()
