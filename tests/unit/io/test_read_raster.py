"""PNG, JPEG and TIFF: values, channels and dtype as in the file; what is changed is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from lexitome.errors import InputError
from lexitome.io import read
from lexitome.volume import PIXEL_AFFINE

RNG = np.random.default_rng(7)
GREY_8 = RNG.integers(0, 256, (11, 17), dtype=np.uint8)
GREY_16 = RNG.integers(0, 65536, (11, 17), dtype=np.uint16)
RGB_8 = RNG.integers(0, 256, (11, 17, 3), dtype=np.uint8)
RGBA_8 = RNG.integers(0, 256, (11, 17, 4), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("array", [GREY_8, GREY_16, RGB_8], ids=["grey8", "grey16", "rgb8"])
def test_lossless_values_are_exact(array: np.ndarray, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(array).save(path)
    volume = read(path)
    expected = array[None, None] if array.ndim == 2 else np.moveaxis(array, -1, 0)[:, None]
    assert volume.array.dtype == array.dtype
    assert np.array_equal(volume.array, expected)
    assert not volume.spacing_known and volume.unit == "px"
    assert np.array_equal(volume.affine, PIXEL_AFFINE)
    assert volume.fixes == ()


def test_jpeg_matches_pillow_and_keeps_grey_grey(tmp_path: Path) -> None:
    Image.fromarray(RGB_8).save(tmp_path / "colour.jpg")
    Image.fromarray(GREY_8).save(tmp_path / "grey.jpeg")
    colour, grey = read(tmp_path / "colour.jpg"), read(tmp_path / "grey.jpeg")
    assert np.array_equal(np.moveaxis(colour.array[:, 0], 0, -1), np.array(Image.open(tmp_path / "colour.jpg")))
    assert grey.array.shape == (1, 1, 11, 17)
    assert colour.source.format == "jpeg"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_is_dropped_and_reported(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(RGBA_8).save(tmp_path / f"image{suffix}")
    volume = read(tmp_path / f"image{suffix}")
    assert np.array_equal(np.moveaxis(volume.array[:, 0], 0, -1), RGBA_8[..., :3])
    assert volume.fixes == ("the alpha channel (transparency) was dropped",)


def test_grey_alpha_stays_grey(tmp_path: Path) -> None:
    Image.merge("LA", [Image.fromarray(GREY_8), Image.fromarray(GREY_8)]).save(tmp_path / "image.png")
    volume = read(tmp_path / "image.png")
    assert np.array_equal(volume.array[0, 0], GREY_8)
    assert "alpha" in volume.fixes[0]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bands", [3, 4])
def test_16_bit_colour_keeps_16_bits(suffix: str, bands: int, tmp_path: Path) -> None:
    array = RNG.integers(0, 65536, (11, 17, bands), dtype=np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / f"image{suffix}"))
    volume = read(tmp_path / f"image{suffix}")
    assert volume.array.dtype == np.uint16
    assert np.array_equal(np.moveaxis(volume.array[:, 0], 0, -1), array[..., :3])
    assert bool(volume.fixes) == (bands == 4)


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    paletted = Image.fromarray(GREY_8 % 7, mode="P")
    paletted.putpalette([channel * 12 for channel in range(21)])
    paletted.save(tmp_path / "image.png")
    volume = read(tmp_path / "image.png")
    assert np.array_equal(np.moveaxis(volume.array[:, 0], 0, -1), np.array(paletted.convert("RGB")))


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY_8 > 100).save(tmp_path / "image.tif")
    volume = read(tmp_path / "image.tif")
    assert np.array_equal(volume.array[0, 0], np.where(GREY_8 > 100, 255, 0))


def test_float_tiff_with_nan_is_repaired_and_reported(tmp_path: Path) -> None:
    array = RNG.normal(size=(11, 17)).astype(np.float32)
    array[3, 4], array[5, 6] = np.nan, np.inf
    Image.fromarray(array).save(tmp_path / "image.tif")
    volume = read(tmp_path / "image.tif")
    finite = array[np.isfinite(array)]
    assert volume.array[0, 0, 3, 4] == finite.min() and volume.array[0, 0, 5, 6] == finite.max()
    assert "2 values were not finite" in volume.fixes[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_reported(orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(GREY_8)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "image.png", exif=exif)
    upright = {
        1: GREY_8,
        2: GREY_8[:, ::-1],
        3: GREY_8[::-1, ::-1],
        4: GREY_8[::-1],
        5: GREY_8.T,
        6: np.rot90(GREY_8, -1),
        7: GREY_8[::-1, ::-1].T,
        8: np.rot90(GREY_8),
    }[orientation]
    volume = read(tmp_path / "image.png")
    assert np.array_equal(volume.array[0, 0], upright)
    assert any(f"EXIF orientation ({orientation})" in fix for fix in volume.fixes) == (orientation != 1)


def test_pages_are_chosen_not_guessed(tmp_path: Path) -> None:
    pages = [Image.fromarray(GREY_8), Image.fromarray(255 - GREY_8)]
    pages[0].save(tmp_path / "image.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"holds 2 pages.*--frame 1 to --frame 2"):
        read(tmp_path / "image.tif")
    assert np.array_equal(read(tmp_path / "image.tif", frame=2).array[0, 0], 255 - GREY_8)
    with pytest.raises(InputError, match=r"no frame 3"):
        read(tmp_path / "image.tif", frame=3)


def test_format_is_told_by_content_not_name(tmp_path: Path) -> None:
    Image.fromarray(GREY_8).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / "image.jpg")
    assert read(tmp_path / "image.jpg").source.format == "png"


def test_png_needs_no_volume_library(tmp_path: Path) -> None:
    Image.fromarray(RGB_8).save(tmp_path / "image.png")
    code = (
        "import sys; from lexitome.io import read; read(sys.argv[1]);"
        "print([m for m in ('SimpleITK', 'nibabel', 'pydicom', 'highdicom', 'scipy', 'torch') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "image.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
