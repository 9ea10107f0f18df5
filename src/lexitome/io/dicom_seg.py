"""DICOM Segmentation objects, made with highdicom on the frames of the source series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from lexitome.concepts import Code
from lexitome.errors import InputError
from lexitome.io.dicom_codes import (
    MANUFACTURER,
    PRIVATE_SCHEME,
    SOFTWARE_VERSION,
    category_code,
    label,
    type_code,
)
from lexitome.io.dicom_source import REMEDY, Plane, functional_group, planes_of
from lexitome.palette import colour
from lexitome.segmentation import Segmentation

if TYPE_CHECKING:
    import highdicom

SEGMENT_TYPES = ("binary", "labelmap")

_REQUIRED_MAYBE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "SliceThickness"),
)


def segmentation_object(segmentation: Segmentation, segment_type: str) -> tuple[Dataset, int]:
    """A DICOM SEG that references the source series, and how many voxels lost a label because segments overlap.

    Frames take position and orientation from the source images, so the mask lies on their pixels exactly. A segment
    without a voxel is described but has no frame.

    Args:
        segmentation: with DICOM headers in its volume's source.
        segment_type: "binary" (one bit plane for each segment; read everywhere) or "labelmap" (small and quick, newer
            viewers only; where segments overlap the smaller one wins).

    Raises:
        InputError: no DICOM source, a resampled volume, or a source that no SEG can refer to.
    """
    import highdicom

    if segment_type not in SEGMENT_TYPES:
        raise ValueError(f"segment_type must be one of {SEGMENT_TYPES}, got {segment_type!r}")
    if not segmentation.findings:
        raise ValueError("a DICOM SEG needs at least one finding")
    planes = planes_of(segmentation.volume, "DICOM SEG")
    pixels, overlap = _pixels(segmentation, segment_type)
    try:
        seg = highdicom.seg.Segmentation(
            source_images=_source_images(planes),
            pixel_array=pixels,
            segmentation_type=segment_type.upper(),
            segment_descriptions=_descriptions(segmentation),
            series_instance_uid=highdicom.UID(),
            series_number=_series_number(planes[0].header),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name="Lexitome",
            software_versions=SOFTWARE_VERSION,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description="Segmentation by prompt",
            series_description="Lexitome segmentation",
            transfer_syntax_uid=RLELossless if segment_type == "labelmap" else ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",
            coding_schemes=[
                highdicom.coding_schemes.CodingSchemeIdentificationItem(
                    PRIVATE_SCHEME, name="Lexitome private codes", responsible_organization="Lexitome"
                )
            ],
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # highdicom checks the source against the standard; what it lacks is the input's fault, not the user's.
        raise InputError(segmentation.volume.source.path, f"no DICOM SEG can refer to it ({error})", REMEDY) from error
    _restore_frame_numbers(seg, planes)
    return seg, overlap


def _pixels(segmentation: Segmentation, segment_type: str) -> tuple[NDArray[np.unsignedinteger], int]:
    """A label map (Z, Y, X) where segments do not overlap, else (Z, Y, X, segment) for the binary type; voxels lost."""
    labels, overlap = segmentation.label_map()
    if overlap == 0 or segment_type == "labelmap":
        return labels.astype(np.uint8 if len(segmentation.findings) < 256 else np.uint16), overlap
    return np.stack([finding.mask for finding in segmentation.findings], axis=-1).astype(np.uint8), 0


def _descriptions(segmentation: Segmentation) -> list[highdicom.seg.SegmentDescription]:
    import highdicom

    model = label(str(segmentation.provenance.get("model", "lexitome")))
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model, family=_concept(Code("123110", "DCM", "Artificial Intelligence")), version=SOFTWARE_VERSION
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=index + 1,
            segment_label=label(finding.name),
            segmented_property_category=_concept(category_code(finding)),
            segmented_property_type=_concept(type_code(finding)),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=highdicom.UID(),
            tracking_id=label(f"{finding.name} {index + 1}"),
            display_color=highdicom.color.CIELabColor.from_rgb(*colour(index)),
        )
        for index, finding in enumerate(segmentation.findings)
    ]


def _concept(code: Code) -> highdicom.sr.CodedConcept:
    import highdicom

    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _series_number(header: Dataset) -> int:
    """Beyond the source's own, so that the series sorts after it in a list."""
    return min(9000 + abs(int(header.get("SeriesNumber") or 0)), 2**31 - 1)


def _source_images(planes: list[Plane]) -> list[Dataset]:
    """The source's headers in array order, the first with all that highdicom insists on; the originals stay as is."""
    first, *others = planes
    if first.frame is not None:
        return [_multi_frame(first.header, [plane.frame or 1 for plane in planes])]
    return [_complete(first.header), *(plane.header for plane in others)]


def _complete(header: Dataset) -> Dataset:
    image = _copy(header)
    for keyword in _REQUIRED_MAYBE_EMPTY:
        if keyword not in image:
            setattr(image, keyword, None)
    if image.PatientSex not in ("M", "F", "O", "", None):
        _replace(image, "PatientSex", None)
    return image


def _copy(dataset: Dataset) -> Dataset:
    """A dataset of its own with the same elements: `copy.copy` would share the table of elements."""
    image = Dataset()
    for element in dataset:
        image.add(element)
    return image


def _replace(image: Dataset, keyword: str, value: object) -> None:
    """Set a new element; plain assignment would change the value inside the element that the original shares."""
    if keyword in image:
        delattr(image, keyword)
    setattr(image, keyword, value)


def _multi_frame(header: Dataset, frames: list[int]) -> Dataset:
    """The multi-frame image reduced to the frames of the volume, in array order."""
    image = _complete(header)
    if "PerFrameFunctionalGroupsSequence" not in header:
        return image
    per_frame = header.PerFrameFunctionalGroupsSequence
    _replace(image, "PerFrameFunctionalGroupsSequence", Sequence([per_frame[frame - 1] for frame in frames]))
    _replace(image, "NumberOfFrames", len(frames))
    # highdicom reads these two from the shared groups only; many scanners repeat them in each frame.
    shared = _copy(header.SharedFunctionalGroupsSequence[0])
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        items = [functional_group(header, frame, name) for frame in frames]
        if items[0] is not None and all(item == items[0] for item in items):
            _replace(shared, name, Sequence([items[0]]))
    _replace(image, "SharedFunctionalGroupsSequence", Sequence([shared]))
    return image


def _restore_frame_numbers(seg: Dataset, planes: list[Plane]) -> None:
    """References into the reduced multi-frame image become references into the real one."""
    if planes[0].frame is None:
        return
    for group in seg.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence", ()):
            for image in derivation.SourceImageSequence:
                if "ReferencedFrameNumber" in image:
                    image.ReferencedFrameNumber = planes[int(image.ReferencedFrameNumber) - 1].frame
