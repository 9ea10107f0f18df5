"""The speed of SAM3 at tiny size: both networks answer alike, what is counted is what is computed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("transformers")
sam3_speed = pytest.importorskip("sam3_speed")
from sam3_load import FILE, write_official  # noqa: E402

from lexitome.models.sam3.eight import is_supported  # noqa: E402


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("official")
    write_official(folder, "tiny")
    sam3_speed.Tokens.learn([sam3_speed.WORD], 600).save(folder)
    return sam3_speed.Options(
        folder, "tiny", ("bfloat16", "float32"), 64, 2, torch.get_num_threads(), None, folder, "", 0
    )  # fmt: skip


def test_both_networks_answer_alike_and_are_timed(options: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam3_speed, "MATRIX", 128)
    path = options.folder / FILE  # type: ignore[attr-defined]
    rows = [sam3_speed.measure(who, "float32", path, options) for who in ("transformers", "lexitome")]
    for name in sam3_speed.SAID:
        assert rows[0][name].shape == rows[1][name].shape
        assert sam3_speed.difference(rows[1][name], rows[0][name]) < 1e-4
    parts = ("picture", "prompt")
    assert all(row[f"{part}_tflop"] > 0 and row[f"{part}_seconds"] > 0 for row in rows for part in parts)
    theirs, ours = rows
    assert ours["prompt_tflop"] < theirs["prompt_tflop"]
    total, our_total = (sum(row[f"{part}_tflop"] for part in parts) for row in rows)
    assert our_total < 1.5 * total, "convolutions of sums are two: that of the finer level moves to the picture"
    bound = sam3_speed.bounds(rows)["float32"]["picture"]
    assert bound["seconds"] > 0 and bound["ours"] == pytest.approx(rows[1]["picture_seconds"] / bound["seconds"])
    assert sam3_speed.ratios(rows)["float32"]["prompt_seconds"] > 0


@pytest.mark.skipif(not is_supported(), reason="the processor has no 8-bit products (VNNI)")
def test_8_bit_products_beside_the_precision_they_replace(options: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam3_speed, "MATRIX", 128)
    path = options.folder / FILE  # type: ignore[attr-defined]
    exact = sam3_speed.measure("transformers", "float32", path, options)
    eight = sam3_speed.measure("lexitome", "int8+float32", path, options)
    assert 1e-4 < sam3_speed.difference(eight["trunk"], exact["trunk"]) < 0.1
    assert set(sam3_speed.ratios([exact, eight])) == {"int8+float32"} and not sam3_speed.bounds([eight])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_counted(dtype: torch.dtype) -> None:
    from lexitome.models.sam3.quick import product

    x, w, b, q = torch.rand(3, 5, 8), torch.rand(16, 8), torch.rand(16), torch.rand(1, 2, 12, 4)
    x, w, b = (each.to(dtype) for each in (x, w, b))
    with torch.inference_mode(), sam3_speed.counted() as found:
        product(x, w, b, then="gelu")
        product(x, w, b, add=torch.rand(3, 5, 16).to(dtype))
        F.scaled_dot_product_attention(q, q, q)
    assert found.get_total_flops() == 2 * (2 * 15 * 8 * 16) + 4 * 2 * 12 * 12 * 4


def test_the_whole_command(options: object) -> None:
    place = options.folder / FILE  # type: ignore[attr-defined]
    found = sam3_speed.whole_command(place, "float32", sam3_speed.replace(options, repeats=1))
    assert found["seconds"] > 0 and found["peak_mb"] > 100
