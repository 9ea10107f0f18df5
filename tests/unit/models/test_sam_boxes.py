"""SAM with boxes: the same numbers as transformers' own processor gives, and folders that hold something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from lexitome.errors import InputError  # noqa: E402
from lexitome.evaluation.answering import About  # noqa: E402
from lexitome.io import from_array  # noqa: E402
from lexitome.models.sam_boxes import load_sam  # noqa: E402
from lexitome.prompts import Box, Query, Text  # noqa: E402
from lexitome.recipes.sam_answers import sam_answerer  # noqa: E402

SIDE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM of random weights, two layers deep."""
    torch.manual_seed(0)
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIDE, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 64,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16, "iou_head_depth": 2,
        },
    )  # fmt: skip
    place = tmp_path_factory.mktemp("sam")
    transformers.SamModel(config).save_pretrained(place)
    return place


def picture(height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_masks_are_those_of_transformers_own_processor(folder: Path) -> None:
    """At the model's own size, where no resampling can differ."""
    sam, image, box = load_sam(folder), picture(SIDE, SIDE), [8.0, 10.0, 40.0, 50.0]
    processor = transformers.SamProcessor(transformers.SamImageProcessor(
        size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE},
    ))  # fmt: skip
    inputs = processor(image, input_boxes=[[box]], return_tensors="pt")
    model = transformers.SamModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        out = model(**{k: inputs[k] for k in ("pixel_values", "input_boxes")}, multimask_output=False)
    (expected,) = processor.image_processor.post_process_masks(
        out.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
    )
    found, expected_iou = sam.decode(sam.embed(image), (SIDE, SIDE), np.array([box]))
    np.testing.assert_allclose(found[0], expected[0, 0].sigmoid().numpy(), atol=1e-4)
    np.testing.assert_allclose(expected_iou[0], out.iou_scores[0, 0, 0], atol=1e-5)


def test_boxes_are_scaled_with_the_picture(folder: Path) -> None:
    """A picture of half the size, all pixels doubled, and the doubled box get the same mask."""
    sam = load_sam(folder)
    small = np.repeat(np.repeat(picture(16, 32), 2, 0), 2, 1)
    large = np.repeat(np.repeat(small, 2, 0), 2, 1)
    box = np.array([[4.0, 6.0, 20.0, 28.0]])
    one, _ = sam.decode(sam.embed(small), small.shape[:2], box)
    two, _ = sam.decode(sam.embed(large), large.shape[:2], 2 * box)
    assert one.shape == (1, 32, 64) and two.shape == (1, 64, 128)
    np.testing.assert_allclose(one[0], two[0].reshape(32, 2, 64, 2).mean((1, 3)), atol=0.02)


def test_answers_lie_on_the_grid_and_only_where_the_box_reaches(folder: Path) -> None:
    answerer = sam_answerer(folder)
    assert answerer.takes == {"box"} and answerer.provenance()["side"] == SIDE
    json.dumps(answerer.provenance())
    flat = answerer.begin(from_array(picture()), About("d", "c"))
    worded, plain = flat.answer([Query(Text("liver"), (Box(5, 5, 30, 30),)), Query(None, (Box(5, 5, 30, 30),))])
    assert worded.mask.shape == (1, 40, 52) and (worded.mask == plain.mask).all()
    assert worded.probability is not None and ((worded.probability >= 0.5) == worded.mask).all()
    stack = from_array(np.random.default_rng(0).normal(size=(5, 40, 52)).astype(np.float32), spacing=(1, 1, 2))
    (answer,) = answerer.begin(stack, About("d", "c")).answer([Query(None, (Box(5, 5, 30, 30, 1, 3),))])
    assert answer.probability is not None
    assert (answer.probability > 0).any(axis=(1, 2)).tolist() == [False, True, True, True, False]


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config.json.*facebook/sam-vit-base"):
        load_sam(tmp_path)
    entry = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(entry))
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_sam(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="'bert', not SAM"):
        load_sam(tmp_path)
