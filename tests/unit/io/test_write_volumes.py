import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray
from PIL import Image
from write_phantoms import (
    AFFINES,
    GRID,
    affine_of,
    asymmetric_mask,
    orthogonal_affines,
    segmentation_on,
    volume_on,
    world_points,
)

from lexitome.errors import InputError
from lexitome.io.write import FORMATS, Written, write, write_json, write_picture
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import LPS_TO_RAS, PIXEL_AFFINE

VOLUME_AFFINES = AFFINES | {"axes swapped": affine_of(angles=(np.pi / 2, 0.0, np.pi / 2))}


def grid_of(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Mask (Z, Y, X) and RAS+ affine, read by the reference library of the format."""
    if path.name.endswith((".nii", ".nii.gz")):
        image = nibabel.load(path)
        return np.asarray(image.dataobj).transpose(2, 1, 0) > 0, image.affine
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image) > 0, LPS_TO_RAS @ affine


@pytest.mark.parametrize("name", VOLUME_AFFINES)
@pytest.mark.parametrize("format", ["nifti", "nrrd", "mha"])
def test_masks_land_on_the_same_world_coordinates(format: str, name: str, tmp_path: Path) -> None:
    segmentation = segmentation_on(volume_on(VOLUME_AFFINES[name]))
    written = write(segmentation, tmp_path / "out", format=format)
    assert [p.name.split(".")[0] for p in written.paths] == ["liver", "간_종양", "spleen"]
    for path, finding in zip(written.paths, segmentation.findings, strict=True):
        mask, affine = grid_of(path)
        assert np.array_equal(mask, finding.mask)
        assert np.allclose(affine, VOLUME_AFFINES[name], rtol=0, atol=3e-5)
        expected = world_points(finding.mask, VOLUME_AFFINES[name])
        assert np.allclose(world_points(mask, affine), expected, rtol=0, atol=1e-3)
    assert not list((tmp_path / "out").glob(".*"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(affine=orthogonal_affines())
@pytest.mark.parametrize("ending", ["nii", "nrrd", "mha"])
def test_any_orthogonal_affine(ending: str, tmp_path: Path, affine: NDArray[np.float64]) -> None:
    format = "nifti" if ending == "nii" else ending
    volume = volume_on(affine)
    segmentation = Segmentation(volume, (Finding("x", asymmetric_mask(), 1.0, 1.0),))
    (path,) = write(segmentation, tmp_path / f"mask.{ending}", format=format).paths
    mask, read_back = grid_of(path)
    assert np.array_equal(mask, segmentation.findings[0].mask)
    # NIfTI-1 has 32-bit headers: 1e-7 of an offset below 1000 mm; the others keep 64 bits as text.
    assert np.allclose(read_back, affine, rtol=0, atol=1e-4 if ending == "nii" else 1e-9)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(affine=orthogonal_affines())
def test_nifti_says_the_same_in_sform_and_qform_and_to_itk(tmp_path: Path, affine: NDArray[np.float64]) -> None:
    segmentation = Segmentation(volume_on(affine), (Finding("x", asymmetric_mask(), 1.0, 1.0),))
    (path,) = write(segmentation, tmp_path / "m.nii", format="nifti").paths
    header = nibabel.load(path).header
    assert header["sform_code"] == header["qform_code"] == 1
    assert np.allclose(header.get_qform(), affine, atol=2e-3)
    assert header.get_xyzt_units()[0] == "mm"
    image = SimpleITK.ReadImage(str(path))
    corner = np.array(GRID[::-1]) - 1
    expected = (LPS_TO_RAS @ affine @ [*corner, 1])[:3]
    assert np.allclose(image.TransformIndexToPhysicalPoint(corner.tolist()), expected, atol=5e-3)


def test_sheared_grid_is_exact_and_unspoilt_by_a_quaternion(tmp_path: Path) -> None:
    affine = affine_of(angles=(0.2, 0.1, 0.0))
    affine[:3, 2] += [0.0, 0.9, 0.0]
    segmentation = segmentation_on(volume_on(affine))
    for format in ("nifti", "nrrd", "mha"):
        path = write(segmentation, tmp_path / format, format=format).paths[0]
        assert np.allclose(grid_of(path)[1], affine, atol=3e-5)
    header = nibabel.load(tmp_path / "nifti" / "liver.nii.gz").header
    assert (header["sform_code"], header["qform_code"]) == (1, 0)
    assert np.allclose(header.get_zooms(), volume_on(affine).spacing, atol=1e-5)


def test_unknown_spacing_is_not_called_mm(tmp_path: Path) -> None:
    segmentation = segmentation_on(volume_on(PIXEL_AFFINE, (1, 12, 15), spacing_known=False))
    path = write(segmentation, tmp_path, format="nifti").paths[0]
    assert nibabel.load(path).header.get_xyzt_units()[0] == "unknown"


def test_png_masks_are_black_and_white(tmp_path: Path) -> None:
    segmentation = segmentation_on(volume_on(PIXEL_AFFINE, (1, 12, 15), spacing_known=False))
    written = write(segmentation, tmp_path, format="png")
    for path, finding in zip(written.paths, segmentation.findings, strict=True):
        pixels = np.asarray(Image.open(path))
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, finding.mask[0] * np.uint8(255))


def test_png_of_a_volume_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--format nifti"):
        write(segmentation_on(volume_on(affine_of())), tmp_path / "out", format="png")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["png", "nifti", "nrrd", "mha"])
def test_combined_label_map_with_its_table(format: str, tmp_path: Path) -> None:
    segmentation = segmentation_on(volume_on(affine_of(), (1, 12, 15)))
    written = write(segmentation, tmp_path, format=format, combined=True)
    path, table = written.paths
    labels = np.asarray(Image.open(path))[None] if format == "png" else None
    if format == "nifti":
        labels = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
    elif labels is None:
        labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    expected, overlap = segmentation.label_map()
    assert np.array_equal(labels, expected)
    rows = json.loads(table.read_text(encoding="utf-8"))
    assert rows["overlapping_voxels"] == overlap
    assert [(r["label"], r["name"], r["found"]) for r in rows["labels"]] == [
        (1, "Liver", True),
        (2, "간 종양", True),
        (3, "spleen", False),
    ]
    assert rows["labels"][0]["code"] == {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    assert len({tuple(r["colour"]) for r in rows["labels"]}) == 3


def test_overlap_is_said(tmp_path: Path) -> None:
    mask = asymmetric_mask()
    both = Segmentation(volume_on(affine_of()), (Finding("a", mask, 1, 1), Finding("b", mask, 1, 1)))
    assert write(both, tmp_path, format="nifti", combined=True).notes[0].startswith(f"{mask.sum()} voxels")
    assert write(both, tmp_path, format="nifti").notes == ()


def test_many_labels_need_sixteen_bits(tmp_path: Path) -> None:
    masks = np.zeros((300, 1, 20, 20), dtype=bool)
    masks.reshape(300, 400)[np.arange(300), np.arange(300)] = True
    findings = tuple(Finding(f"f{i}", mask, 1, 1) for i, mask in enumerate(masks))
    segmentation = Segmentation(volume_on(affine_of(), (1, 20, 20)), findings)
    path = write(segmentation, tmp_path, format="png", combined=True).paths[0]
    assert np.asarray(Image.open(path)).max() == 300


def test_file_targets(tmp_path: Path) -> None:
    volume = volume_on(affine_of())
    one = Segmentation(volume, (Finding("polyp", asymmetric_mask(), 1, 1),))
    assert write(one, tmp_path / "out.nii.gz", format="nifti") == Written((tmp_path / "out.nii.gz",))
    many = segmentation_on(volume)
    with pytest.raises(InputError, match="3 masks"):
        write(many, tmp_path / "many.nii.gz", format="nifti")
    written = write(many, tmp_path / "many.nii.gz", format="nifti", combined=True)
    assert [p.name for p in written.paths] == ["many.nii.gz", "many.labels.json"]
    with pytest.raises(InputError, match="--format png"):
        write(one, tmp_path / "out.png", format="nifti")


def test_existing_files_are_kept_when_asked(tmp_path: Path) -> None:
    segmentation = segmentation_on(volume_on(affine_of()))
    kept = write(segmentation, tmp_path, format="nrrd").paths
    kept[0].unlink()
    before = kept[1].stat().st_mtime_ns
    with pytest.raises(InputError, match="exists already"):
        write(segmentation, tmp_path, format="nrrd", overwrite=False)
    assert kept[1].stat().st_mtime_ns == before
    assert not kept[0].exists()
    write(segmentation, tmp_path, format="nrrd")
    assert kept[0].exists()


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmentation = segmentation_on(volume_on(affine_of()))
    path = write(segmentation, tmp_path, format="nifti").paths[0]
    before = path.read_bytes()

    def disk_full(image: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel, "save", disk_full)
    with pytest.raises(InputError, match="No space left"):
        write(segmentation, tmp_path, format="nifti")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["liver.nii.gz", "간_종양.nii.gz", "spleen.nii.gz"])


def test_unwritable_places_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    segmentation = segmentation_on(volume_on(affine_of()))
    for format in FORMATS:
        if not format.startswith("dicom") and format != "png":
            with pytest.raises(InputError, match="cannot be written"):
                write(segmentation, tmp_path / "file" / "sub", format=format)


def test_json_and_pictures(tmp_path: Path) -> None:
    write_json({"name": "간"}, tmp_path / "a" / "x.json")
    assert "간" in (tmp_path / "a" / "x.json").read_text(encoding="utf-8")
    rgb = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    write_picture(rgb, tmp_path / "p.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p.png")), rgb)
