"""From trained weights to the folder of a model: two ONNX graphs and `card.json`.

Weights are the moving average, stored as float16 unless asked otherwise, and computed in float32. How each concept is
asked is chosen on the validation split (`training.calibrate`). Nothing is written if ONNX Runtime and torch differ by
more than 1e-3 in any probability, before the weights are rounded for storage.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from lexitome.concepts import Vocabulary
from lexitome.data.batches import BatchSource
from lexitome.data.cache import CachedDataset
from lexitome.data.dataset import Dataset
from lexitome.data.intensity import LUNG, SOFT_TISSUE, Window
from lexitome.data.licences import licence_of_weights
from lexitome.data.trained_on import FILE as PICTURES
from lexitome.data.trained_on import TrainedOn, fingerprints
from lexitome.errors import InputError
from lexitome.models import card_page
from lexitome.models.catalog import FILES, TrainingSet, weights_hash
from lexitome.models.compact import CompactConfig, CompactNet
from lexitome.models.compact_weights import Storage, rebuild, store
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.training import checkpoint
from lexitome.training.calibrate import Calibration, calibrate
from lexitome.training.graphs import OFFSETS, OUTPUTS, Pair, differences, export_graphs, worst_probability
from lexitome.training.validation import validate_text_only

PAGE = "README.md"
MAX_DIFFERENCE = 1e-3
MAX_OFFSET_DIFFERENCE = 1e-2
DEFAULT_SIDE = 320
SAME_WINDOW = 50.0
"""Hounsfield units by which a window may differ from a standard one and still be taken for it: windows that are equal
share an encoded image."""
COMPARED_PICTURES = 4
"""Validation pictures of each set that tell what 8-bit weights cost."""


def load_average(path: Path, config: CompactConfig | None = None) -> CompactNet:
    """The network with averaged weights, in evaluation mode.

    Args:
        path: a run's folder, one of its checkpoints, or a torch file with the key "average".
        config: of the network; by default what is stored beside the weights, else the usual one.
    Raises:
        InputError: there are no weights, or they are of another network.
    """
    if path.is_dir():
        place = _checkpoint_of(path)
        config = config or stored_config(checkpoint.read_state(place))
        model = CompactNet(config, EfficientNetLite(config.backbone))
        checkpoint.load_weights(model, place)
        return model.eval()
    state = torch.load(path, map_location="cpu", weights_only=True)
    config = config or CompactConfig(**state.get("model_config", {}))
    model = CompactNet(config, EfficientNetLite(config.backbone))
    checkpoint.copy_into(checkpoint.model_tensors(model), state["average"], path)
    return model.eval()


def _checkpoint_of(folder: Path) -> Path:
    """The best checkpoint of a run, else its last; or the folder itself."""
    if (folder / "state.json").is_file():
        return folder
    found = (checkpoint.locate(folder / "checkpoints", name) for name in ("best", "last"))
    place = next((path for path in found if path is not None), None)
    if place is None:
        raise InputError(folder, "holds no checkpoint", "Name the folder that lexitome train wrote to.")
    return place


def stored_config(state: Mapping[str, Any]) -> CompactConfig:
    """The network that a run trained: `recipe.model` of its configuration."""
    stored = dict(state.get("config", {}).get("recipe", {}).get("model", {}))
    return CompactConfig(**{**stored, "path": tuple(stored["path"])} if "path" in stored else stored)


def run_state(run: Path) -> dict[str, Any]:
    """`state.json` of the checkpoint that `load_average` takes: step, metrics, config, versions.

    Raises:
        InputError: the folder holds none.
    """
    return checkpoint.read_state(_checkpoint_of(run))


@dataclass(frozen=True)
class Before:
    """What a model was trained on before the run that is exported: sets, and hashes of their pictures where it has
    them."""

    sets: tuple[TrainingSet, ...] = ()
    pictures: TrainedOn | None = None


NOTHING = Before()


def write_model(
    model: CompactNet,
    sets: Sequence[CachedDataset],
    out: Path,
    *,
    name: str,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    storage: Storage = "fp16",
    before: Before = NOTHING,
) -> dict[str, Any]:
    """Export, compare, calibrate and write the folder `out`, all or nothing; returns the card.

    Args:
        sets: what the model was trained on; their validation rows are asked.
        metrics: what validation measured in training; what calibration measures joins it.
        before: what the model that it began with was trained on: that binds this one too.
    Raises:
        ValueError: the graphs differ from torch.
        InputError: `out` holds something that is no model, or cannot be written.
    """
    _check_place(out)
    plain = export_graphs(model)
    parity = {"onnx": differences(model, plain)}
    if worst_probability(parity["onnx"]) > MAX_DIFFERENCE or parity["onnx"][OFFSETS] > MAX_OFFSET_DIFFERENCE:
        raise ValueError(f"ONNX differs from torch: {_in_words(parity['onnx'])}")
    graphs = Pair(*(store(graph, storage) for graph in plain))
    parity[storage] = differences(model, graphs)
    for form, found in parity.items():
        print(f"{form}: largest difference to torch: {_in_words(found)}")
    measured = dict(metrics or {})
    if storage == "int8":
        measured["rounding"] = _cost_of_rounding(model, graphs, sets)
        print(f"int8: validation {measured['rounding']}")
    card = {
        "name": name, "format": storage, "sha256": weights_hash(*graphs),
        "size_mb": round(sum(map(len, graphs)) / 1e6, 1), "onnx_difference": worst_probability(parity["onnx"]),
        "stored_difference": worst_probability(parity[storage]), "parity": parity,
        "model_config": asdict(model.config), "provenance": dict(provenance),
        **_described(sets, calibrate(graphs, sets), measured, before.sets),
    }  # fmt: skip
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    files = dict(zip(FILES, (*graphs, text.encode()), strict=True)) | {PICTURES: _pictures(sets, before).to_bytes()}
    _replace_folder(out, {**files, PAGE: card_page.page(card).encode()})
    print(f"wrote {out}: {card['size_mb']} MB as {storage}; {card['weights_licence']}")
    return card


def _described(
    sets: Sequence[CachedDataset],
    calibration: Calibration,
    measured: Mapping[str, Any],
    start_sets: Sequence[TrainingSet],
) -> dict[str, Any]:
    """What the card says that does not depend on the weights' bytes."""
    seen: dict[str, Dataset | TrainingSet] = {s.name: s for s in start_sets}
    seen |= {cached.dataset.name: cached.dataset for cached in sets}
    licence = licence_of_weights(list(seen.values()))
    dice = [choice.dice for choice in calibration.targets.values() if choice.dice is not None]
    return {
        "side": DEFAULT_SIDE, "default_threshold": calibration.default_threshold,
        "weights_licence": licence.text, "weights_duties": licence.duties, "research_only": licence.research_only,
        "licences": {key: asdict(judgement) for key, judgement in licence.judged.items()},
        "metrics": {**measured, "calibrated_dice": sum(dice) / len(dice) if dice else None},
        "calibration": {
            "views": "chosen where a set was cut along all axes, not measured on whole volumes",
            "targets": {key: asdict(choice) for key, choice in calibration.targets.items()},
        },
        "trained_concepts": trained_concepts(sets, calibration),
        "sets": [{"name": d.name, "title": d.title, "modality": d.modality, "licence": d.licence, "source": d.source}
                 for d in seen.values()],
    }  # fmt: skip


def _pictures(sets: Sequence[CachedDataset], before: Before) -> TrainedOn:
    """Hashes by which an evaluation finds training pictures in a test set."""
    datasets = [cached.dataset for cached in sets]
    total = sum(case.split != "test" for dataset in datasets for case in dataset.cases)
    with Progress(transient=True) as bar:
        task = bar.add_task("hashing", total=total)
        found = fingerprints(datasets, progress=lambda done: bar.update(task, completed=done))
    return found if before.pictures is None else found.merged(before.pictures)


def _cost_of_rounding(model: CompactNet, graphs: Pair, sets: Sequence[CachedDataset]) -> dict[str, dict[str, float]]:
    """Validation metrics of the network as it was trained and with its weights as they are stored."""
    source = BatchSource(list(sets), seed=0)
    rounded = rebuild(model.config, graphs, "the stored graphs")
    return {
        form: validate_text_only(network, source, COMPARED_PICTURES)
        for form, network in (("trained", model.eval()), ("stored", rounded))
    }


def trained_concepts(sets: Sequence[CachedDataset], calibration: Calibration) -> list[dict[str, Any]]:
    """One entry for each concept that a training set draws (`models.catalog.TrainedConcept`): what was chosen for the
    target of the largest set, the families of all of them, and what any of them allows. A target that the vocabulary
    does not know for sure is a concept under its own name."""
    vocabulary = Vocabulary.load()
    entries: dict[str, dict[str, Any]] = {}
    for dataset in sorted((cached.dataset for cached in sets), key=lambda d: -len(d.cases)):
        for target in dataset.targets:
            resolution = vocabulary.resolve(target.name)
            known = resolution.concept is not None and resolution.how != "meaning"
            name = resolution.concept.name if resolution.concept is not None and known else target.name
            choice = calibration.targets[target.name]
            entry = entries.setdefault(name, {
                "concept": name, "words": target.name, "families": [], "window": None,
                "threshold": choice.threshold, "side": choice.side, "stacked": False, "views": False,
                "countable": False, "mirrored": False,
            })  # fmt: skip
            entry["families"] += [dataset.family] if dataset.family not in entry["families"] else []
            entry["window"] = entry["window"] or _standard_window(dataset)
            for trait in ("stacked", "views", "countable", "mirrored"):
                entry[trait] = entry[trait] or getattr(choice, trait)
    return list(entries.values())


def _standard_window(dataset: Dataset) -> list[float] | None:
    """The CT window of a set, as the standard window that it nearly is; None where it has none."""
    window = dataset.window or dataset.applied_window
    if window is None:
        return None
    standard: tuple[Window, ...] = (SOFT_TISSUE, LUNG)
    near = (w for w in standard if max(abs(a - b) for a, b in zip(w, window, strict=True)) <= SAME_WINDOW)
    return list(next(near, window))


def _check_place(out: Path) -> None:
    """A folder that is not a model is never replaced."""
    if out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= {*FILES, PAGE, PICTURES}):
        raise InputError(out, "holds something other than a model", "Choose another folder.")


def _replace_folder(out: Path, contents: Mapping[str, bytes]) -> None:
    """Write the folder under another name, then let it take its place; an old one is removed last."""
    fresh, old = (out.with_name(f".{out.name}.{secrets.token_hex(6)}.{kind}") for kind in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        for name, content in contents.items():
            (fresh / name).write_bytes(content)
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(fresh, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            raise
    except OSError as error:
        raise InputError(out, f"cannot be written ({error.strerror})", "Free some space or choose another.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _in_words(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {found[name]:.1e}" for name in OUTPUTS)
