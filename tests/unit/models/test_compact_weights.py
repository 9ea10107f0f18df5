"""Weights inside graphs: every form of storage gives the network back, and nothing else passes for it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lexitome.errors import InputError
from lexitome.models.compact import CompactConfig, CompactNet
from lexitome.models.compact_weights import STORAGES, Storage, load_folder, store, stored_weights
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.training.graphs import Pair, differences, export_graphs, worst_probability

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24), frozen_blocks=2)


@pytest.fixture(scope="module")
def net() -> CompactNet:
    torch.manual_seed(0)
    net = CompactNet(TINY, EfficientNetLite(0, frozen_blocks=2)).eval()
    net.decoder.text.fit(torch.randn(40, TINY.text_dim))
    return net


@pytest.fixture(scope="module")
def plain(net: CompactNet) -> Pair:
    return export_graphs(net)


def write(folder: Path, graphs: Pair, config: CompactConfig = TINY) -> Path:
    (folder / "encoder.onnx").write_bytes(graphs.encoder)
    (folder / "decoder.onnx").write_bytes(graphs.decoder)
    (folder / "card.json").write_text(json.dumps({"model_config": asdict(config)}))
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("storage", STORAGES)
def test_what_comes_back_answers_as_the_graphs_do(tmp_path: Path, plain: Pair, storage: Storage) -> None:
    graphs = Pair(*(store(graph, storage) for graph in plain))
    back = load_folder(write(tmp_path, graphs))
    found = differences(back, graphs, sides=(64, 96))
    assert worst_probability(found) < 1e-3 and found["offsets"] < 1e-2
    assert not back.training and back.config == TINY


def test_float32_comes_back_exactly_and_the_others_nearly(net: CompactNet, plain: Pair) -> None:
    wanted = {name: value.numpy() for name, value in net.state_dict().items()}
    for storage, tolerance in (("fp32", 0.0), ("fp16", 2**-11), ("int8", 0.5 / 127)):
        found = stored_weights(store(graph, storage) for graph in plain)  # type: ignore[arg-type]
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            largest = np.abs(value).max(initial=0)
            np.testing.assert_allclose(
                found[name], value, rtol=0, atol=1.001 * tolerance * largest + 1e-7, err_msg=name
            )


def test_sizes_of_storage(plain: Pair) -> None:
    sizes = {storage: sum(len(store(graph, storage)) for graph in plain) for storage in STORAGES}
    assert sizes["fp16"] < 0.62 * sizes["fp32"] and sizes["int8"] < 0.4 * sizes["fp32"]


def test_each_output_channel_has_its_own_scale() -> None:
    values = np.stack([np.linspace(-1, 1, 256), np.linspace(-1e-3, 1e-3, 256), np.zeros(256)]).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a.weight"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 256])],
        [numpy_helper.from_array(values, "a.weight")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    back = stored_weights([store(model.SerializeToString(), "int8")])["a.weight"]
    assert np.abs(back - values).max(axis=1) == pytest.approx([0.5 / 127, 0.5e-3 / 127, 0], rel=0.05, abs=1e-9)


def test_too_large_for_half_is_refused() -> None:
    tensor = numpy_helper.from_array(np.full((20, 20), 1e6, np.float32), "a.bias")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a.bias"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [20, 20])], [tensor],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ValueError, match=r"a\.bias is too large for float16"):
        store(model.SerializeToString(), "fp16")


def test_a_foreign_graph_is_refused_and_names_what_it_lacks(tmp_path: Path, plain: Pair, net: CompactNet) -> None:
    model = onnx.load_from_string(plain.decoder)
    for tensor in model.graph.initializer:
        tensor.name = f"foreign.{tensor.name}"
    for node in model.graph.node:
        node.input[:] = [f"foreign.{name}" if name.startswith("decoder.") else name for name in node.input]
    first = next(name for name in net.state_dict() if name.startswith("decoder."))
    with pytest.raises(InputError, match=rf"lacks the weights {first}, .* and \d+ more"):
        load_folder(write(tmp_path, Pair(plain.encoder, model.SerializeToString())))


def test_other_sizes_are_refused(tmp_path: Path, plain: Pair) -> None:
    wider = CompactConfig(**{**asdict(TINY), "width": 64})
    with pytest.raises(InputError, match="lacks the weights"):
        load_folder(write(tmp_path, plain, wider))
    fewer = CompactConfig(**{**asdict(TINY), "encoder_layers": 0})
    with pytest.raises(InputError, match="weights without a place"):
        load_folder(write(tmp_path, plain, fewer))


def test_a_folder_that_is_no_model(tmp_path: Path, plain: Pair) -> None:
    with pytest.raises(InputError, match=r"card\.json"):
        load_folder(tmp_path)
    write(tmp_path, Pair(b"\x00\x01 no graph", plain.decoder))
    with pytest.raises(InputError, match="damaged graph"):
        load_folder(tmp_path)
    (tmp_path / "encoder.onnx").unlink()
    with pytest.raises(InputError, match=r"encoder\.onnx"):
        load_folder(tmp_path)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(InputError, match="does not describe"):
        load_folder(tmp_path)
