"""PNG, JPEG and TIFF. These carry no place in the world: spacing is unknown and lengths are pixels."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from lexitome.errors import InputError
from lexitome.io.checks import native_silence, pick_frame, refusing, settle_dtype
from lexitome.io.limits import check_inflated, check_shape
from lexitome.volume import PIXEL_AFFINE, Source, Volume

_NAMES = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "TIFF": "tiff"}
_UPRIGHT = 1
_BITS_PER_SAMPLE = 258  # TIFF tag
_GREY_MODES = ("1", "L", "I", "F")


def read_raster(path: Path, frame: int | None = None) -> Volume:
    """Array (1 or 3, 1, Y, X): uint8 or uint16, or what a TIFF of floats or 32-bit integers holds.

    The orientation that a camera wrote into EXIF is applied, as every viewer does. Alpha is dropped. Both are noted.
    """
    with refusing(path, "decoding the image"):
        try:
            image = Image.open(path, formats=["PNG", "JPEG", "TIFF"])
        except Image.DecompressionBombError as error:
            remedy = "Crop or tile the image, or make it smaller."
            raise InputError(path, "holds more pixels than can be decoded safely", remedy) from error
        with image:
            image.seek(_page(path, image, frame))
            check_shape(path, (image.height, image.width, len(image.getbands())))
            pixels = image.height * image.width * len(image.getbands())
            check_inflated(path, pixels, path.stat().st_size)
            # libtiff writes about damaged files to standard error; the PNG and JPEG decoders do not.
            with native_silence() if image.format == "TIFF" else nullcontext():
                array, notes = _read_deep_colour(path, image) if _is_deep_colour(path, image) else _pixels(image)
            name = _NAMES[image.format or "PNG"]
    array = settle_dtype(array)
    channels = np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]
    return Volume(
        array=np.ascontiguousarray(channels[:, None]),
        affine=PIXEL_AFFINE,
        spacing_known=False,
        source=Source(path=str(path), format=name),
        fixes=notes,
    )


def _page(path: Path, image: Image.Image, frame: int | None) -> int:
    # A phone's MPO is one photograph followed by previews of it; only the first is the image.
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    return pick_frame(path, frame, pages, "pages")


def _pixels(image: Image.Image) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """(Y, X) or (Y, X, 3) and what was changed."""
    notes = []
    orientation = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    if image.has_transparency_data:
        notes.append("the alpha channel (transparency) was dropped")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notes.append(f"{image.mode} colours were converted to RGB")
    if image.mode in _GREY_MODES or image.mode.startswith("I;16"):
        upright = image.convert("L") if image.mode == "1" else image
    else:
        upright = image.convert("L" if image.mode in ("LA", "La") else "RGB")
    if 2 <= orientation <= 8:
        notes.append(f"turned upright as its EXIF orientation ({orientation}) asks")
        upright.getexif()[ExifTags.Base.Orientation] = orientation
        upright = ImageOps.exif_transpose(upright)
    return np.array(upright), tuple(notes)


def _is_deep_colour(path: Path, image: Image.Image) -> bool:
    """Whether Pillow would cut a multi-channel image of more than 8 bits down to 8."""
    if image.format == "PNG":
        with path.open("rb") as file:
            header = file.read(26)  # signature, IHDR: width, height, bit depth, colour type
        return header[24] == 16 and header[25] in (2, 4, 6)
    if image.format == "TIFF":
        depths = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
        return len(depths) > 1 and max(depths) > 8
    return False


def _read_deep_colour(path: Path, image: Image.Image) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """(Y, X) or (Y, X, 3) uint16, by way of ITK since Pillow has no 16-bit colour."""
    import SimpleITK as sitk

    orientation = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    if getattr(image, "n_frames", 1) > 1 or orientation != _UPRIGHT:
        remedy = "Save the page upright as a file of its own."
        raise InputError(path, "16-bit colour in several pages or with an EXIF orientation cannot be read", remedy)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("PNGImageIO" if image.format == "PNG" else "TIFFImageIO")
    array = sitk.GetArrayFromImage(reader.Execute())
    bands = array.shape[2] if array.ndim == 3 else 1
    if bands not in (2, 4):
        return array, ()
    colours = array[..., 0] if bands == 2 else array[..., :3]
    return colours, ("the alpha channel (transparency) was dropped",)
