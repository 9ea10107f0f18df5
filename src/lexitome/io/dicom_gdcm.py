"""Lossless and 12-bit JPEG by way of GDCM, which SimpleITK carries: the one free decoder of what CT and CR archives
most often hold. (Pillow has neither, and the plugin for pydicom is under the GPL.)"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lexitome.io.checks import native_silence

if TYPE_CHECKING:
    from pydicom import Dataset

SYNTAXES = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
"""JPEG Extended, JPEG Lossless, JPEG Lossless SV1."""

_PIXEL_ELEMENTS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
)


def decode_frames(dataset: Dataset) -> NDArray[np.generic]:
    """(frames, Y, X) or (frames, Y, X, 3) stored values. Raises RuntimeError where GDCM fails.

    GDCM gets the pixel elements alone: with the whole dataset it would rescale, and it need not see the patient.
    """
    import SimpleITK as sitk
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, SecondaryCaptureImageStorage

    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    bare.SOPClassUID = bare.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    bare.SOPInstanceUID = bare.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    for keyword in _PIXEL_ELEMENTS:
        if keyword in dataset:
            bare[keyword] = dataset[keyword]
    with tempfile.TemporaryDirectory(prefix="lexitome-") as folder:
        file = Path(folder, "pixels.dcm")
        bare.save_as(file, enforce_file_format=True)
        # GDCM tries its 8-, 12- and 16-bit decoders in turn, and the wrong ones complain.
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.SetImageIO("GDCMImageIO")
        with native_silence():
            array = sitk.GetArrayFromImage(reader.Execute())
    return array.reshape(-1, int(dataset.Rows), int(dataset.Columns), *array.shape[3:])
