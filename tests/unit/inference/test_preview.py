import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lexitome.concepts import Concept
from lexitome.inference import legend
from lexitome.inference.legend import measure_text, readable
from lexitome.inference.preview import preview
from lexitome.inference.slices import three_slices, to_screen, window_of
from lexitome.palette import colour
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import PIXEL_AFFINE, Volume


def near(picture: NDArray[np.uint8], rgb: tuple[int, int, int]) -> int:
    """How many pixels show a colour."""
    return int((np.abs(picture.astype(int) - rgb).max(axis=-1) < 30).sum())


def image(
    shape: tuple[int, int, int, int], *, modality: str = "", affine: NDArray[np.float64] = PIXEL_AFFINE
) -> Volume:
    array = np.full(shape, 90, dtype=np.uint8)
    return Volume(array, affine, modality, spacing_known=affine is not PIXEL_AFFINE)


def blob(grid: tuple[int, int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(grid, dtype=bool)
    mask[tuple(slice(n // 3, max(n // 3 + 1, 2 * n // 3)) for n in grid)] = True
    return mask


def test_2d_shows_the_image_untouched_beside_the_overlay() -> None:
    volume = image((3, 1, 200, 240))
    picture = preview(Segmentation(volume, (Finding("polyp", blob(volume.grid), 0.9, 0.8),)))
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 1024
    assert picture.shape[0] <= 1024
    # Above the legend: the colour is in the right half only.
    panels = picture[: int(picture.shape[0] * 0.85)]
    assert near(panels[:, :512], colour(0)) == 0
    assert near(panels[:, 512:], colour(0)) > 200
    assert near(panels[:, :512], (90, 90, 90)) > 100_000


def test_absent_target_has_no_colour_anywhere() -> None:
    volume = image((1, 1, 100, 100))
    absent = Finding("polyp", np.zeros(volume.grid, dtype=bool), 0.02, 0.0)
    assert near(preview(Segmentation(volume, (absent,))), colour(0)) == 0
    assert near(preview(Segmentation(volume, ())), (90, 90, 90)) > 100_000


@pytest.mark.parametrize("shape", [(1, 1, 3000, 40), (1, 1, 40, 3000), (3, 1, 1, 1), (1, 2, 500, 3), (1, 90, 2, 2)])
@pytest.mark.parametrize("max_side", [256, 700])
def test_extreme_shapes_stay_in_bounds(shape: tuple[int, int, int, int], max_side: int) -> None:
    volume = image(shape, affine=np.diag([0.5, 0.5, 6.0, 1.0]))
    picture = preview(Segmentation(volume, (Finding("x", blob(volume.grid), 1, 1),)), max_side=max_side)
    assert max(picture.shape[:2]) <= max_side


def test_one_voxel_is_visible_in_a_large_image() -> None:
    volume = image((1, 1, 2000, 2000))
    mask = np.zeros(volume.grid, dtype=bool)
    mask[0, 700, 1200] = True
    picture = preview(Segmentation(volume, (Finding("speck", mask, 1, 1),)))
    # Speck and dark halo on even grey, in the right panel.
    panel = picture[60:500, 530:1000].astype(int)
    assert np.abs(panel - 90).max() > 25


def test_many_findings_keep_the_image_in_the_picture() -> None:
    volume = image((1, 1, 200, 200))
    findings = tuple(Finding(f"structure {i}", blob(volume.grid), 0.9, 0.9) for i in range(120))
    picture = preview(Segmentation(volume, findings))
    assert max(picture.shape[:2]) <= 1024
    assert near(picture, (90, 90, 90)) > 50_000


def oriented(signs: tuple[int, int, int], order: tuple[int, int, int]) -> Volume:
    """A 3D volume of RAS+ content 40 x 50 x 60 mm, stored along voxel axes in any order and direction."""
    world = np.zeros((40, 50, 60), dtype=np.uint8)
    world[30:38, 40:48, 50:58] = 200
    affine = np.eye(4)
    affine[:3, :3] = 0
    stored = world
    for voxel_axis, (world_axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world_axis, voxel_axis] = sign
        if sign < 0:
            affine[world_axis, 3] = world.shape[world_axis] - 1
            stored = np.flip(stored, world_axis)
    return Volume(stored.transpose(order).transpose(2, 1, 0)[None].copy(), affine, "MR")


@given(
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.permutations([0, 1, 2]).map(tuple),
)
@settings(deadline=None)
def test_right_is_left_and_up_is_anterior_or_superior_however_stored(
    signs: tuple[int, int, int], order: tuple[int, int, int]
) -> None:
    volume = oriented(signs, order)
    mask = volume.array[0] > 0
    slices = three_slices(Segmentation(volume, (Finding("x", mask, 1, 1),)))
    # The block lies right, anterior and superior: at the start of every axis as it is shown.
    for part, size in zip(slices, [(40, 50), (40, 60), (50, 60)], strict=True):
        shown = part.of(mask)
        assert shown.shape == (size[1], size[0])
        assert part.size == size
        rows, columns = np.nonzero(shown)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 9, 2, 9)
    assert [s.letters for s in slices] == [("R", "A", "L", "P"), ("R", "S", "L", "I"), ("A", "S", "P", "I")]
    assert [s.title.split()[0] for s in slices] == ["Axial", "Coronal", "Sagittal"]


def test_without_orientation_there_are_no_letters() -> None:
    volume = image((1, 5, 20, 20))
    for part in three_slices(Segmentation(volume, (Finding("x", blob(volume.grid), 1, 1),))):
        assert part.letters == ("", "", "", "")


def ct(value_inside: float) -> Segmentation:
    array = np.full((1, 8, 40, 40), -1000, dtype=np.int16)
    array[0, :, 10:30, 10:30] = 40
    mask = np.zeros((8, 40, 40), dtype=bool)
    mask[2:5, 15:20, 15:20] = True
    array[0][mask] = value_inside
    return Segmentation(Volume(array, np.eye(4), "CT"), (Finding("x", mask, 1, 1),))


def test_windows() -> None:
    assert window_of(ct(60)) == (-160.0, 240.0)
    assert window_of(ct(-850)) == (-1350.0, 150.0)
    constant = Volume(np.full((1, 1, 4, 4), 7.5), np.eye(4), "MR")
    low, high = window_of(Segmentation(constant, ()))
    assert low < high
    part = three_slices(ct(60))[0]
    assert to_screen(ct(60).volume, part, (0.0, 0.5)).dtype == np.uint8
    with_nan = Volume(np.full((1, 2, 4, 4), np.nan), np.eye(4), "MR")
    assert preview(Segmentation(with_nan, (Finding("x", blob((2, 4, 4)), 1, 1),))).any()


def finding(name: str, concept: Concept | None = None) -> Finding:
    return Finding(name, np.ones((1, 2, 2), dtype=bool), 1, 1, concept)


def test_names_without_glyphs_get_a_readable_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legend, "_system_fonts", lambda points: ())
    assert readable(finding("left kidney"), 0, 14)[0] == "left kidney"
    assert readable(finding("간", Concept("liver")), 0, 14)[0] == "liver"
    assert readable(finding("肝脏"), 2, 14)[0] == "finding 3"
    assert readable(finding("간 tumor"), 0, 14)[0] == "finding 1"
    assert readable(finding("\x00\n "), 0, 14)[0] == "finding 1"
    assert readable(finding("o\u0302"), 0, 14)[0] in ("ô", "o")


def test_a_font_of_the_system_is_used_when_it_has_the_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = legend.face(14).font
    korean = legend.face(15).font
    monkeypatch.setattr(legend, "_system_fonts", lambda points: (korean,))
    monkeypatch.setattr(legend, "_has", lambda font, char: font is korean or char.isascii())
    assert readable(finding("간"), 0, 14) == ("간", korean)
    assert readable(finding("liver"), 0, 14) == ("liver", plain)


@given(st.text(max_size=40))
@settings(max_examples=25, deadline=None)
def test_any_name_and_note_can_be_drawn(name: str) -> None:
    volume = image((1, 1, 20, 20))
    noted = Finding(name, blob(volume.grid), 0.5, 0.5, None, (name,))
    assert preview(Segmentation(volume, (noted,)), max_side=256).shape[1] == 256


@pytest.mark.parametrize(
    ("affine", "grid", "text"),
    [
        (np.diag([1.0, 1.0, 1.0, 1.0]), (10, 20, 30), "6 ml"),
        (np.diag([0.1, 0.1, 1.0, 1.0]), (1, 20, 30), "6 mm2"),
        (np.diag([9.0, 9.0, 1.0, 1.0]), (1, 20, 30), "486 cm2"),
        (PIXEL_AFFINE, (1, 200, 30), "6,000 px"),
        (PIXEL_AFFINE, (2, 200, 30), "12,000 voxels"),
    ],
)
def test_sizes_in_words(affine: NDArray[np.float64], grid: tuple[int, int, int], text: str) -> None:
    found = Finding("x", np.ones(grid, dtype=bool), 1, 1)
    assert measure_text(found, image((1, *grid), affine=affine)) == text


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        preview(Segmentation(image((1, 1, 9, 9)), ()), max_side=10)
