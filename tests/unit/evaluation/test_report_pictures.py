"""Examples and figures: the right pixels have the right colour, the choice is fair, sizes keep to their bounds."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lexitome.errors import InputError
from lexitome.evaluation.report.blocks import Document, Gallery, Section, Shot
from lexitome.evaluation.report.figures import MOST_ROWS, Spread, box_plots, strip_plots
from lexitome.evaluation.report.html import render_html
from lexitome.evaluation.report.markdown import render_markdown
from lexitome.evaluation.report.overlays import (
    PREDICTION,
    REFERENCE,
    choose_examples,
    load_examples,
    render_overlay,
    save_examples,
    shrink,
)
from lexitome.evaluation.rows import ResultRow
from lexitome.volume import PIXEL_AFFINE, Volume

sys.path.insert(0, str(Path(__file__).parent))
from scored_run import make_rows


def scored(case: str, dice: float | None, *, present: bool = True, derived: bool = False) -> ResultRow:
    return ResultRow("set", "test", case, case, "drawing", 2, "disc", derived, "model", "text", present,
                     metrics={"dice": dice})  # fmt: skip


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_examples_do_not_depend_on_the_order(scores: list[int], rng: random.Random) -> None:
    rows = [scored(f"c{i}", score / 4) for i, score in enumerate(scores)]
    rows += [scored("absent", None, present=False), scored("union", 0.0, derived=True)]
    shuffled = rng.sample(rows, len(rows))
    chosen = choose_examples(rows)
    assert choose_examples(shuffled) == chosen
    assert len({row.case for row, _ in chosen}) == len(chosen) == min(len(scores), 3)
    found = {rank: row.metrics["dice"] for row, rank in chosen}
    if len(scores) > 1:
        assert (found["worst"], found["best"]) == (min(scores) / 4, max(scores) / 4)
    if len(scores) > 2:
        assert found["median"] == sorted(scores)[len(scores) // 2] / 4


def picture_of(volume: Volume, prediction: np.ndarray, reference: np.ndarray, side: int = 320) -> np.ndarray:
    png, _ = render_overlay(volume, prediction, reference, side=side)
    return np.asarray(Image.open(io.BytesIO(png)))


def near(pixels: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    return np.abs(pixels.astype(int) - rgb).max(-1) < 40


def test_outlines_lie_on_the_edges_of_the_masks() -> None:
    """Reference on the left, prediction on the right, 5 screen pixels for each of the image."""
    volume = Volume(np.full((1, 1, 64, 64), 90, np.uint8), PIXEL_AFFINE, spacing_known=False)
    left, right = np.zeros((2, 1, 64, 64), dtype=bool)
    left[0, 10:50, 4:24], right[0, 10:50, 36:60] = True, True
    pixels = picture_of(volume, right, left)
    assert pixels.shape == (320, 320, 3)
    blue, amber = near(pixels, REFERENCE), near(pixels, PREDICTION)
    assert blue[100:200, 20:23].all() and amber[100:200, 180:182].all()
    assert not blue[:, 160:].any() and not amber[:, :160].any()
    assert (pixels[100:200, 60:80] == 90).all() and (pixels[100:200, 220:260] == 90).all()  # inside: only the image
    both = picture_of(volume, left, left)
    assert near(both, PREDICTION).any() and near(both, REFERENCE).any()  # one above the other, and both are seen


def test_empty_masks_show_the_image_alone() -> None:
    volume = Volume(np.full((3, 1, 20, 40), 120, np.uint8), PIXEL_AFFINE, spacing_known=False)
    empty = np.zeros((1, 20, 40), dtype=bool)
    pixels = picture_of(volume, empty, empty, side=80)
    assert pixels.shape == (40, 80, 3) and (pixels == 120).all()


def test_volumes_are_cut_where_the_masks_are_and_keep_their_shape_in_mm() -> None:
    grid = (6, 40, 40)
    volume = Volume(np.zeros((1, *grid), np.int16), np.diag([-0.5, -1.5, 4.0, 1.0]))
    reference, prediction = np.zeros((2, *grid), dtype=bool)
    reference[2, 5:35, 5:35], prediction[4, 18:21, 18:21] = True, True
    png, place = render_overlay(volume, prediction, reference, side=120)
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    assert place == "axial 3 / 6"
    assert pixels.shape[:2] == (120, 40)
    assert near(pixels, REFERENCE).any() and not near(pixels, PREDICTION).any()


def test_small_targets_are_enlarged() -> None:
    volume = Volume(np.zeros((1, 1, 400, 400), np.uint8), PIXEL_AFFINE, spacing_known=False)
    speck = np.zeros((1, 400, 400), dtype=bool)
    speck[0, 2:12, 380:390] = True
    png, place = render_overlay(volume, speck, speck)
    assert place == "enlarged"
    assert near(np.asarray(Image.open(io.BytesIO(png))), REFERENCE).sum() > 200


BLINDNESS = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""Full loss of one kind of cone, in linear RGB (Machado, Oliveira and Fernandes, IEEE TVCG 15, 2009, table 1)."""


@pytest.mark.parametrize("kind", BLINDNESS)
def test_outlines_can_be_told_apart_by_everybody(kind: str) -> None:
    linear = [(np.array(rgb) / 255) ** 2.2 for rgb in (REFERENCE, PREDICTION)]
    seen = [np.clip(np.array(BLINDNESS[kind]) @ colour, 0, 1) ** (1 / 2.2) for colour in linear]
    assert np.abs(seen[0] - seen[1]).max() > 0.35


def noise(side: int, seed: int) -> bytes:
    """A PNG that nothing can make much smaller."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_pictures_shrink_to_what_they_may_weigh() -> None:
    png = noise(200, 0)
    assert shrink(png, len(png)) == (png, "png")
    data, kind = shrink(png, 20_000)
    assert kind == "jpeg" and len(data) <= 20_000
    assert Image.open(io.BytesIO(data)).format == "JPEG"


def test_a_report_of_fifty_sets_stays_small() -> None:
    shots = [Shot(noise(320, i), f"shot-{i}", "worst", "a case") for i in range(15)]
    galleries = tuple(
        Gallery(f"set {i}", tuple(Shot(shots[(3 * i + j) % 15].png, f"s{i}-{j}", "t", "c") for j in range(3)))
        for i in range(50)
    )
    document = Document("t", "s", (), (Section("examples", "Examples", galleries),))
    page = render_markdown(document)
    assert len(page.pictures) == 150
    assert len(page.text) + sum(map(len, page.pictures.values())) < 1_500_000
    assert len(render_html(document)) < 12_000_000


def test_examples_are_kept(tmp_path: Path) -> None:
    _, drawn = make_rows("discs", 6, 100.0, "threshold")
    save_examples(tmp_path, drawn)
    examples = load_examples(tmp_path)
    assert [(e.case, e.protocol, e.rank, e.score) for e in examples] == [
        (row.case, row.protocol, rank, row.metrics["dice"]) for row, rank, *_ in drawn
    ]
    assert all((tmp_path / e.file).read_bytes() == entry[2] for e, entry in zip(examples, drawn, strict=True))
    assert load_examples(tmp_path / "elsewhere") == []


def test_pictures_outside_the_run_are_refused(tmp_path: Path) -> None:
    _, drawn = make_rows("discs", 6, 100.0, "threshold")
    save_examples(tmp_path / "run", drawn)
    (tmp_path / "private.png").write_bytes(drawn[0][2])
    index = tmp_path / "run" / "overlays.json"
    entries = json.loads(index.read_text())
    index.write_text(json.dumps([entries[0] | {"file": "../private.png"}]))
    with pytest.raises(InputError, match="not there"):
        load_examples(tmp_path / "run")


def spreads(rows: int, series: int) -> list[Spread]:
    rng = np.random.default_rng(0)
    values = [np.clip(rng.normal(70, 20, 12), 0, 100) for _ in range(rows * series)]
    return [
        Spread(f"set_{i // series:03d}", f"model {i % series}", v, float(v.mean()), (float(v.mean()) - 3, 90.0))
        for i, v in enumerate(values)
    ]


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 50), st.integers(1, 3))
def test_every_row_is_drawn_once_over_several_figures(rows: int, series: int) -> None:
    drawn = box_plots(spreads(rows, series), "Dice, %")
    found = [name for figure in drawn for name in {f"set_{i:03d}" for i in range(rows)} if f">{name}<" in figure.svg]
    assert sorted(found) == [f"set_{i:03d}" for i in range(rows)]
    assert len(drawn) == 1 or rows > MOST_ROWS // series


def test_figures_are_small_and_oracle_boxes_hatched() -> None:
    plain, oracle = (box_plots(spreads(10, 1), "Dice, %", oracle=kind)[0] for kind in (False, True))
    assert "hatch" not in plain.svg.replace("hatching", "") and "<pattern" in oracle.svg
    many = [Spread(f"set_{i}", "m", np.linspace(0, 100, 400), 50.0, (40.0, 60.0)) for i in range(20)]
    figure = strip_plots(many, "Dice, %")[0]
    assert len(figure.svg) < 600_000 and len(figure.png) < 150_000
    assert Image.open(io.BytesIO(figure.png)).width > 600


def test_one_value_makes_a_box() -> None:
    spread = Spread("set", "model", np.array([40.0]), 40.0)
    assert box_plots([spread], "Dice, %")[0].png.startswith(b"\x89PNG") and strip_plots([spread], "Dice, %")
