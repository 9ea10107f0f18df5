"""DICOM RT Structure Sets: masks as closed planar contours on the slices of the source series."""

from __future__ import annotations

import datetime

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from lexitome.concepts import Code
from lexitome.errors import InputError
from lexitome.io.contours import outlines
from lexitome.io.dicom_codes import MANUFACTURER, SOFTWARE_VERSION, category_code, label, type_code
from lexitome.io.dicom_source import REMEDY, Plane, planes_of
from lexitome.palette import colour
from lexitome.segmentation import Finding, Segmentation

_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management: the SOP class by which structure sets refer to a study."""


def structure_set(segmentation: Segmentation) -> FileDataset:
    """A DICOM RTSTRUCT that references the source series; an empty finding is a ROI without contours.

    Contours follow voxel borders at half-voxel precision (filling them recovers the mask); holes are joined to their
    outline by keyholes, since closed planar contours cannot be nested.

    Raises:
        InputError: no DICOM source with positions, or a resampled volume.
    """
    volume = segmentation.volume
    planes = planes_of(volume, "DICOM RTSTRUCT")
    header = planes[0].header
    missing = [k for k in ("FrameOfReferenceUID", "StudyInstanceUID", "SeriesInstanceUID") if not header.get(k)]
    if missing or planes[0].affine is None:
        cause = f"DICOM RTSTRUCT output needs {missing[0] if missing else 'a position'} in the source"
        raise InputError(volume.source.path, cause, REMEDY)
    dataset = _new_object(header)
    dataset.StructureSetLabel = "LEXITOME"
    dataset.StructureSetName = "Lexitome segmentation"
    dataset.StructureSetDate, dataset.StructureSetTime = dataset.InstanceCreationDate, dataset.InstanceCreationTime
    dataset.ReferencedFrameOfReferenceSequence = Sequence([_frame_of_reference(planes)])
    rois, contours, observations = [], [], []
    for index, finding in enumerate(segmentation.findings):
        rois.append(_roi(finding, index + 1, header.FrameOfReferenceUID))
        contours.append(_roi_contours(finding.mask, index, planes))
        observations.append(_observation(finding, index + 1))
    dataset.StructureSetROISequence = Sequence(rois)
    dataset.ROIContourSequence = Sequence(contours)
    dataset.RTROIObservationsSequence = Sequence(observations)
    return dataset


def _new_object(header: Dataset) -> FileDataset:
    """Patient, study, series and equipment of the new object."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
    # Implicit: explicit lengths of coordinate strings have 16 bits, too few for a long contour.
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    now = datetime.datetime.now()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.StudyInstanceUID = header.StudyInstanceUID
    for keyword in ("PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"):
        setattr(dataset, keyword, header.get(keyword))
    for keyword in ("PatientName", "ReferringPhysicianName"):
        # By way of str: the name is written in this object's character set, not in the source's.
        setattr(dataset, keyword, str(header.get(keyword) or ""))
    for keyword in ("StudyID", "StudyDate", "StudyTime"):
        setattr(dataset, keyword, header.get(keyword))
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = generate_uid(prefix=None)
    dataset.SeriesNumber = min(9000 + abs(int(header.get("SeriesNumber") or 0)), 2**31 - 1)
    dataset.SeriesDescription = "Lexitome segmentation"
    dataset.OperatorsName = None
    dataset.InstanceNumber = 1
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = MANUFACTURER
    dataset.SoftwareVersions = SOFTWARE_VERSION
    dataset.FrameOfReferenceUID = header.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _image_reference(plane: Plane) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = plane.header.SOPClassUID
    reference.ReferencedSOPInstanceUID = plane.header.SOPInstanceUID
    if plane.frame is not None:
        reference.ReferencedFrameNumber = plane.frame
    return reference


def _frame_of_reference(planes: list[Plane]) -> Dataset:
    header = planes[0].header
    series = Dataset()
    series.SeriesInstanceUID = header.SeriesInstanceUID
    series.ContourImageSequence = Sequence([_image_reference(plane) for plane in planes])
    study = Dataset()
    study.ReferencedSOPClassUID = _STUDY_COMPONENT
    study.ReferencedSOPInstanceUID = header.StudyInstanceUID
    study.RTReferencedSeriesSequence = Sequence([series])
    frame = Dataset()
    frame.FrameOfReferenceUID = header.FrameOfReferenceUID
    frame.RTReferencedStudySequence = Sequence([study])
    return frame


def _roi(finding: Finding, number: int, frame_of_reference: str) -> Dataset:
    roi = Dataset()
    roi.ROINumber = number
    roi.ReferencedFrameOfReferenceUID = frame_of_reference
    roi.ROIName = label(finding.name)
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    if not finding.found:
        roi.ROIDescription = "not found"
    return roi


def _roi_contours(mask: NDArray[np.bool_], index: int, planes: list[Plane]) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber = index + 1
    item.ROIDisplayColor = list(colour(index))
    contours: list[Dataset] = []
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        plane = planes[z]
        assert plane.affine is not None
        for ring in outlines(mask[z]):
            world = ring @ plane.affine[:3, :2].T + plane.affine[:3, 3]
            contour = Dataset()
            contour.ContourImageSequence = Sequence([_image_reference(plane)])
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.ContourNumber = len(contours) + 1
            contour.NumberOfContourPoints = len(world)
            # 0.1 micrometre; a decimal string holds 16 characters.
            contour.ContourData = [f"{value:.4f}" for value in world.ravel().tolist()]
            contours.append(contour)
    if contours:
        item.ContourSequence = Sequence(contours)
    return item


def _observation(finding: Finding, number: int) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = number
    observation.ReferencedROINumber = number
    observation.RTROIInterpretedType = ""
    observation.ROIInterpreter = None
    observation.RTROIIdentificationCodeSequence = Sequence([_coded(type_code(finding))])
    observation.SegmentedPropertyCategoryCodeSequence = Sequence([_coded(category_code(finding))])
    return observation


def _coded(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item
