from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray
from pydicom.uid import UltrasoundImageStorage
from test_write_contours import filled
from write_phantoms import (
    AFFINES,
    GRID,
    LIVER,
    affine_of,
    asymmetric_mask,
    dicom_volume,
    multi_frame_volume,
    orthogonal_affines,
    segmentation_on,
    volume_on,
    world_points,
)

from lexitome.errors import InputError
from lexitome.io.write import write
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import LPS_TO_RAS, PIXEL_AFFINE, Source, Volume


def disjoint(volume: Volume) -> Segmentation:
    first = asymmetric_mask(volume.grid)
    second = np.zeros(volume.grid, dtype=bool)
    second[-2, 2:4, -4:-1] = True
    findings = (
        Finding("Liver", first, 0.98, 0.9, LIVER),
        Finding("간 종양", second & ~first, 0.7, 0.6),
        Finding("spleen", np.zeros(volume.grid, dtype=bool), 0.04, 0.0),
    )
    return Segmentation(volume, findings, {"model": "compact"})


def world_of_seg(path: Path, number: int) -> NDArray[np.float64]:
    """RAS+ coordinates of one segment's voxels, from each frame's own position, by pydicom alone."""
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    rows, columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    found = [np.empty((0, 3))]
    for frame, group in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if seg.SegmentationType == "LABELMAP":
            mask = frame == number
        else:
            identification = group if "SegmentIdentificationSequence" in group else shared
            mask = frame > 0
            if identification.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
                continue
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        y, x = np.nonzero(mask)
        found.append(origin + np.outer(x * columns, cosines[:3]) + np.outer(y * rows, cosines[3:]))
    points = np.concatenate(found) @ LPS_TO_RAS[:3, :3]
    return points[np.lexsort(np.round(points, 2).T)]


@pytest.mark.parametrize("segment_type", ["binary", "labelmap"])
@pytest.mark.parametrize("name", AFFINES)
def test_seg_lands_on_the_same_world_coordinates(name: str, segment_type: str, tmp_path: Path) -> None:
    segmentation = disjoint(dicom_volume(AFFINES[name]))
    (path,) = write(segmentation, tmp_path, format="dicom-seg", segment_type=segment_type).paths
    assert path.name == "segmentation.dcm"
    for index, finding in enumerate(segmentation.findings):
        expected = world_points(finding.mask, AFFINES[name])
        assert np.allclose(world_of_seg(path, index + 1), expected, rtol=0, atol=1e-3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(affine=orthogonal_affines())
def test_highdicom_reads_the_same_world_coordinates(tmp_path: Path, affine: NDArray[np.float64]) -> None:
    segmentation = disjoint(dicom_volume(affine))
    (path,) = write(segmentation, tmp_path / "x.dcm", format="dicom-seg").paths
    volume = highdicom.seg.segread(path).get_volume(segment_numbers=[1], combine_segments=True)
    # highdicom's indices run (slice, row, column), in an order of its own: only world coordinates compare.
    points = np.argwhere(volume.array > 0) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    points = points @ LPS_TO_RAS[:3, :3]
    expected = np.argwhere(segmentation.findings[0].mask)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    assert len(points) == len(expected)
    gap = np.linalg.norm(points[:, None] - expected[None], axis=-1).min(axis=1)
    assert gap.max() < 0.05 * min(segmentation.volume.spacing)


def test_overlapping_segments_stay_whole_in_binary_and_are_reported_in_labelmap(tmp_path: Path) -> None:
    volume = dicom_volume(affine_of())
    mask = asymmetric_mask()
    inner = mask & (np.arange(GRID[2]) < 5)
    segmentation = Segmentation(volume, (Finding("lung", mask, 1, 1), Finding("nodule", inner, 1, 1)))
    binary = write(segmentation, tmp_path / "b.dcm", format="dicom-seg")
    assert len(world_of_seg(binary.paths[0], 1)) == mask.sum()
    assert len(world_of_seg(binary.paths[0], 2)) == inner.sum()
    assert binary.notes == ()
    labelmap = write(segmentation, tmp_path / "l.dcm", format="dicom-seg", segment_type="labelmap")
    assert len(world_of_seg(labelmap.paths[0], 1)) == (mask & ~inner).sum()
    assert str(inner.sum()) in labelmap.notes[0]
    codes = [
        s.SegmentedPropertyCategoryCodeSequence[0].CodeValue for s in pydicom.dcmread(binary.paths[0]).SegmentSequence
    ]
    assert codes == ["123037004", "49755003"]


@pytest.mark.parametrize("segment_type", ["binary", "labelmap"])
def test_nothing_found_at_all(segment_type: str, tmp_path: Path) -> None:
    volume = dicom_volume(affine_of())
    findings = tuple(Finding(name, np.zeros(GRID, dtype=bool), 0.01, 0) for name in ("liver", "spleen"))
    (path,) = write(Segmentation(volume, findings), tmp_path, format="dicom-seg", segment_type=segment_type).paths
    seg = highdicom.seg.segread(path)
    assert not seg.pixel_array.any()
    assert set(seg.segment_numbers) == {1, 2}


def test_seg_refers_to_its_source_and_carries_the_codes(tmp_path: Path) -> None:
    segmentation = disjoint(dicom_volume(affine_of(signs=(1, 1, -1))))
    (path,) = write(segmentation, tmp_path, format="dicom-seg").paths
    seg = pydicom.dcmread(path)
    headers = segmentation.volume.source.headers
    assert seg.StudyInstanceUID == headers[0].StudyInstanceUID
    assert seg.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == headers[0].SeriesInstanceUID
    assert seg.SpecificCharacterSet == "ISO_IR 192"
    assert str(seg.PatientName) == "Hong^Gildong=洪^吉洞=홍^길동"
    by_position = {tuple(h.ImagePositionPatient): h.SOPInstanceUID for h in headers}
    for group in seg.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        position = tuple(group.PlanePositionSequence[0].ImagePositionPatient)
        assert image.ReferencedSOPInstanceUID == by_position[position]
    liver, tumour, _ = seg.SegmentSequence
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "SCT"
    assert tumour.SegmentLabel == "간 종양"
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99LEXITOME"
    assert liver.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "compact"
    assert len(liver.RecommendedDisplayCIELabValue) == 3


@pytest.mark.parametrize("order", [[1, 2, 3, 4], [4, 3, 2, 1], [7, 2, 5]])
def test_multi_frame_sources(order: list[int], tmp_path: Path) -> None:
    affine = affine_of(angles=(0.2, 0.1, -0.4))
    volume = multi_frame_volume(affine, order)
    mask = asymmetric_mask(volume.grid)
    segmentation = Segmentation(volume, (Finding("liver", mask, 1, 1, LIVER),))
    (seg_path,) = write(segmentation, tmp_path, format="dicom-seg").paths
    assert np.allclose(world_of_seg(seg_path, 1), world_points(mask, affine), rtol=0, atol=1e-3)
    (rt_path,) = write(segmentation, tmp_path, format="dicom-rtstruct").paths
    used = {order[z] for z in np.flatnonzero(mask.any(axis=(1, 2)))}
    groups = pydicom.dcmread(seg_path).PerFrameFunctionalGroupsSequence
    images = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
    assert {int(image.ReferencedFrameNumber) for image in images} == used
    for image, group in zip(images, groups, strict=True):
        z = order.index(image.ReferencedFrameNumber)
        position = LPS_TO_RAS[:3, :3] @ volume.to_world(np.array([0, 0, z]))
        assert np.allclose(group.PlanePositionSequence[0].ImagePositionPatient, position, atol=1e-3)
    contours = pydicom.dcmread(rt_path).ROIContourSequence[0].ContourSequence
    assert {int(c.ContourImageSequence[0].ReferencedFrameNumber) for c in contours} == used


def mask_of_contours(path: Path, roi: int, volume: Volume) -> NDArray[np.bool_]:
    """Contours of one ROI back to voxels, each on the slice that it refers to."""
    item = pydicom.dcmread(path).ROIContourSequence[roi]
    slice_of = {h.SOPInstanceUID: z for z, h in enumerate(volume.source.headers)}
    rings: dict[int, list[NDArray[np.float64]]] = {}
    for contour in item.get("ContourSequence", ()):
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        points = np.reshape(np.array(contour.ContourData, dtype=float), (-1, 3))
        assert len(points) == contour.NumberOfContourPoints
        voxels = volume.to_voxel(points @ LPS_TO_RAS[:3, :3])
        z = slice_of[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        assert np.allclose(voxels[:, 2], z, atol=1e-2)
        rings.setdefault(z, []).append(voxels[:, :2])
    mask = np.zeros(volume.grid, dtype=bool)
    for z, polygons in rings.items():
        mask[z] = filled(polygons, volume.grid[1:])
    return mask


@pytest.mark.parametrize("name", AFFINES)
def test_rtstruct_contours_recover_the_mask(name: str, tmp_path: Path) -> None:
    volume = dicom_volume(AFFINES[name])
    segmentation = segmentation_on(volume)
    (path,) = write(segmentation, tmp_path, format="dicom-rtstruct").paths
    assert path.name == "rtstruct.dcm"
    for index, finding in enumerate(segmentation.findings):
        assert np.array_equal(mask_of_contours(path, index, volume), finding.mask)


def test_rtstruct_holes_components_and_touching_the_border(tmp_path: Path) -> None:
    grid = (3, 60, 80)
    y, x = np.mgrid[:60, :80]
    radius = np.hypot(y - 30, x - 40)
    mask = np.zeros(grid, dtype=bool)
    mask[0] = (radius < 28) & (radius > 18) | (radius < 9) & (radius > 4)
    mask[1] = np.random.default_rng(0).random((60, 80)) > 0.4
    mask[2, 0, 0] = mask[2, 30, 79] = True
    volume = dicom_volume(affine_of(angles=(0.4, 0.3, 0.2)), grid)
    segmentation = Segmentation(volume, (Finding("ring", mask, 1, 1),))
    (path,) = write(segmentation, tmp_path, format="dicom-rtstruct").paths
    back = mask_of_contours(path, 0, volume)
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) >= 0.98
    assert np.array_equal(back[0], mask[0])


def test_rtstruct_describes_its_rois(tmp_path: Path) -> None:
    volume = dicom_volume(affine_of())
    (path,) = write(segmentation_on(volume), tmp_path, format="dicom-rtstruct").paths
    rt = pydicom.dcmread(path)
    assert [roi.ROIName for roi in rt.StructureSetROISequence] == ["Liver", "간 종양", "spleen"]
    assert "ContourSequence" not in rt.ROIContourSequence[2]
    series = rt.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert len(series.ContourImageSequence) == GRID[0]
    assert series.SeriesInstanceUID == volume.source.series_uid
    assert str(rt.PatientName) == "Hong^Gildong=洪^吉洞=홍^길동"
    code = rt.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("10200004", "SCT")


@pytest.mark.parametrize("format", ["dicom-seg", "dicom-rtstruct"])
class TestRefusals:
    def refused(self, volume: Volume, format: str, tmp_path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            write(segmentation_on(volume), tmp_path / "out", format=format)
        assert "--format nifti" in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_not_dicom(self, format: str, tmp_path: Path) -> None:
        self.refused(volume_on(affine_of()), format, tmp_path, "DICOM image as input")

    def test_resampled(self, format: str, tmp_path: Path) -> None:
        volume = dicom_volume(affine_of())
        moved = Volume(volume.array, affine_of(spacing=(0.7, 1.3, 3.6)), "CT", True, volume.source)
        self.refused(moved, format, tmp_path, "resampled")

    def test_flipped(self, format: str, tmp_path: Path) -> None:
        volume = dicom_volume(affine_of())
        source = Source("series", "dicom", volume.source.series_uid, volume.source.headers[::-1])
        self.refused(Volume(volume.array, volume.affine, "CT", True, source), format, tmp_path, "resampled or moved")

    def test_slices_without_headers(self, format: str, tmp_path: Path) -> None:
        volume = dicom_volume(affine_of())
        source = Source("series", "dicom", volume.source.series_uid, volume.source.headers[:-1])
        self.refused(Volume(volume.array, volume.affine, "CT", True, source), format, tmp_path, "each slice")

    def test_cropped(self, format: str, tmp_path: Path) -> None:
        volume = dicom_volume(affine_of())
        cropped = Volume(volume.array[..., :10], volume.affine, "CT", True, volume.source)
        self.refused(cropped, format, tmp_path, "DICOM images are")

    def test_without_frame_of_reference(self, format: str, tmp_path: Path) -> None:
        volume = dicom_volume(affine_of())
        for header in volume.source.headers:
            del header.FrameOfReferenceUID
        self.refused(volume, format, tmp_path, "Frame ?[Oo]f ?Reference")


def ultrasound() -> Volume:
    """A photograph-like DICOM: no position, no frame of reference, few patient data."""
    volume = dicom_volume(affine_of(), (1, 11, 13))
    header = volume.source.headers[0]
    header.SOPClassUID = UltrasoundImageStorage
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(header, keyword)
    for keyword in ("FrameOfReferenceUID", "PatientBirthDate", "StudyID", "AccessionNumber"):
        delattr(header, keyword)
    header.PatientSex = "UNKNOWN"
    return Volume(volume.array, PIXEL_AFFINE, "US", False, volume.source)


def test_image_without_a_place_in_the_patient(tmp_path: Path) -> None:
    volume = ultrasound()
    segmentation = segmentation_on(volume)
    (path,) = write(segmentation, tmp_path, format="dicom-seg").paths
    seg = highdicom.seg.segread(path)
    pixels = seg.get_pixels_by_source_instance([volume.source.headers[0].SOPInstanceUID])
    for index, finding in enumerate(segmentation.findings):
        assert np.array_equal(pixels[0, ..., index] > 0, finding.mask[0])
    assert "PatientBirthDate" not in volume.source.headers[0]
    with pytest.raises(InputError, match="needs FrameOfReferenceUID"):
        write(segmentation, tmp_path, format="dicom-rtstruct")
