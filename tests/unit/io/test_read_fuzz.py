"""Damaged copies of every format: each read ends in a Volume or an InputError, silently."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lexitome.errors import InputError
from lexitome.io import read

PYDICOM = Path(pydicom.__file__).parent / "data" / "test_files"
RNG = np.random.default_rng(5)
COLOUR = RNG.integers(0, 256, (24, 20, 3), dtype=np.uint8)
GREY = RNG.integers(0, 4000, (4, 5, 6)).astype(np.int16)


def pillow(name: str, compression: str | None = None) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        Image.fromarray(COLOUR).save(folder / name, **({"compression": compression} if compression else {}))
        return folder / name

    return build


def simpleitk(name: str, compress: bool) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        sitk.WriteImage(sitk.GetImageFromArray(GREY), str(folder / name), compress)
        return folder / name

    return build


def nifti(name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        nibabel.save(nibabel.Nifti1Image(GREY.astype(np.float64), np.eye(4)), folder / name)
        return folder / name

    return build


def shipped(name: str) -> Callable[[Path], Path]:
    return lambda folder: PYDICOM / name


SEEDS = {
    "png": pillow("image.png"),
    "jpeg": pillow("image.jpg"),
    "tiff": pillow("image.tif"),
    "tiff-lzw": pillow("image.tif", "tiff_lzw"),
    "mha": simpleitk("image.mha", compress=False),
    "mha-zlib": simpleitk("image.mha", compress=True),
    "nrrd": simpleitk("image.nrrd", compress=False),
    "nrrd-gzip": simpleitk("image.nrrd", compress=True),
    "nifti": nifti("image.nii"),
    "nifti-gzip": nifti("image.nii.gz"),
    "dicom": shipped("MR_small.dcm"),
    "dicom-deflated": shipped("image_dfl.dcm"),
    "dicom-rle": shipped("SC_rgb_rle_2frame.dcm"),
    "dicom-jpeg2000": shipped("MR_small_jp2klossless.dcm"),
    "dicom-jpegls": shipped("MR_small_jpeg_ls_lossless.dcm"),
    "dicom-jpeg-lossless": shipped("SC_rgb_jpeg_gdcm.dcm"),
    "dicom-palette": shipped("examples_palette.dcm"),
}

EDITS = st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6)


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_damaged_file_is_read_or_refused(seed: Callable[[Path], Path], capfd: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = seed(folder)
        intact = path.read_bytes()
        assert read(path, frame=1).array.size > 0

        @settings(max_examples=40, deadline=None)
        @given(edits=EDITS, in_header=st.booleans(), keep=st.sampled_from([1.0, 1.0, 0.7]))
        def damage(edits: list[tuple[float, bool, bytes]], in_header: bool, keep: float) -> None:
            content = bytearray(intact[: int(len(intact) * keep)])
            for place, insert, new in edits:
                start = int(place * (min(600, len(content)) if in_header else len(content)))
                content[start : start if insert else start + len(new)] = new
            victim = folder / ("damaged" + "".join(path.suffixes))
            victim.write_bytes(content)
            try:
                assert read(victim, frame=1).array.size > 0
            except InputError as error:
                assert error.path and error.cause and error.remedy and "\n" not in str(error)

        damage()
    assert capfd.readouterr() == ("", "")
