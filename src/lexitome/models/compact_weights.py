"""Weights inside the graphs of a compact model: how they are stored, and the torch network built from them again.

Every initialiser carries the name of its torch parameter, or that name with an ending that says how it is stored. Nodes
that turn it back into float32 follow, and ONNX Runtime computes them once, when it loads a graph: all forms compute in
float32, and none is slower than another. (`DequantizeLinear` would be the usual node for 8 bits, but the runtime keeps
it for each run: 15 ms a graph.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources.abc import Traversable
from typing import Literal, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lexitome.errors import InputError
from lexitome.models.compact import CompactConfig, CompactNet
from lexitome.models.efficientnet_lite import EfficientNetLite

Storage = Literal["fp16", "fp32", "int8"]
"""fp16: half the size, no difference that shows. int8: a quarter, rounded for each output channel."""
STORAGES: tuple[Storage, ...] = get_args(Storage)
HALF, BYTE, SCALE = ".half", ".int8", ".scale"
FEWEST = 256
"""Smaller tensors stay float32: they weigh nothing."""
GRAPHS = ("encoder.onnx", "decoder.onnx")
REMEDY = "Name the folder of a compact model that this version exported."
_SHOWN = 10


def store(graph: bytes, storage: Storage) -> bytes:
    """A graph with float32 weights, its weights stored otherwise.

    Raises:
        ValueError: a weight is too large for float16.
    """
    model = onnx.load_from_string(graph)
    if storage == "fp32":
        return graph
    restored: list[NodeProto] = []
    scales: list[TensorProto] = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < FEWEST:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        if storage == "int8" and name.endswith(".weight") and values.ndim > 1:
            rounded, scale = _to_bytes(values)
            tensor.CopyFrom(numpy_helper.from_array(rounded, name + BYTE))
            scales.append(numpy_helper.from_array(scale, name + SCALE))
            restored.append(helper.make_node("Cast", [name + BYTE], [f"{name}.rounded"], to=TensorProto.FLOAT))
            restored.append(helper.make_node("Mul", [f"{name}.rounded", name + SCALE], [name]))
        else:
            if np.abs(values).max() > np.finfo(np.float16).max:
                raise ValueError(f"{name} is too large for float16; store the model as fp32")
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + HALF))
            restored.append(helper.make_node("Cast", [name + HALF], [name], to=TensorProto.FLOAT))
    nodes = [*restored, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(scales)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _to_bytes(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(out, ...) weights as whole numbers in -127..127, and for each output channel what one of them is worth."""
    largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(values / scale).astype(np.int8), scale


def stored_weights(graphs: Iterable[bytes]) -> dict[str, NDArray[np.float32]]:
    """Name of the torch parameter to values, of everything that lies in the graphs themselves."""
    arrays = {
        tensor.name: numpy_helper.to_array(tensor)
        for graph in graphs
        for tensor in onnx.load_from_string(graph).graph.initializer
        if tensor.data_location != TensorProto.EXTERNAL
    }
    weights = {}
    for name, values in arrays.items():
        if name.endswith(HALF):
            weights[name.removesuffix(HALF)] = values.astype(np.float32)
        elif name.endswith(BYTE):
            whole = name.removesuffix(BYTE)
            weights[whole] = values.astype(np.float32) * arrays[whole + SCALE]
        elif not name.endswith(SCALE):
            weights[name] = values
    return weights


def load_folder(folder: Traversable) -> CompactNet:
    """The network of an exported model, in evaluation mode: what `lexitome train` continues from.

    Args:
        folder: holds encoder.onnx, decoder.onnx and card.json; a `Path`, or a folder of package assets.
    Raises:
        InputError: a file is missing or damaged, or the graphs are not those of a compact model of this version.
    """
    try:
        card = json.loads(folder.joinpath("card.json").read_text(encoding="utf-8"))
        config = CompactConfig(**{**card["model_config"], "path": tuple(card["model_config"]["path"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/card.json", f"does not describe a compact model ({error!r})", REMEDY) from error
    try:
        graphs = [folder.joinpath(name).read_bytes() for name in GRAPHS]
    except OSError as error:
        raise InputError(str(folder), f"is no model ({error.strerror}: {error.filename})", REMEDY) from error
    return rebuild(config, graphs, str(folder))


def rebuild(config: CompactConfig, graphs: Sequence[bytes], origin: str) -> CompactNet:
    """The network whose graphs these are, in evaluation mode.

    Raises:
        InputError: they are damaged, or those of another network; `origin` says where they come from.
    """
    try:
        weights = stored_weights(graphs)
    except Exception as error:  # protobuf's own kinds of errors
        raise InputError(origin, f"holds a damaged graph ({type(error).__name__})", REMEDY) from error
    model = CompactNet(config, EfficientNetLite(config.backbone, frozen_blocks=config.frozen_blocks))
    wanted = model.state_dict()
    missing = [name for name, value in wanted.items() if name not in weights or weights[name].shape != value.shape]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise InputError(origin, f"lacks the weights {', '.join(missing[:_SHOWN])}{more}", REMEDY)
    if strange := sorted(weights.keys() - wanted.keys()):
        raise InputError(origin, f"has weights without a place: {', '.join(strange[:_SHOWN])}", REMEDY)
    model.load_state_dict({name: torch.from_numpy(np.array(weights[name])) for name in wanted})
    return model.eval()
