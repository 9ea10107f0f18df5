"""The nasty-input table: each row is handled and reported, or refused with the file, the cause and the remedy."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from read_phantoms import axial_affine, ct_slice, marked_array, set_pixels, write_series

from lexitome.errors import InputError
from lexitome.io import read

Build = Callable[[Path], Path]


def nifti(folder: Path, data: np.ndarray, affine: np.ndarray | None = None, name: str = "image.nii") -> Path:
    nibabel.save(nibabel.Nifti1Image(data, axial_affine() if affine is None else affine), folder / name)
    return folder / name


def text(name: str, content: bytes) -> Build:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return build


def nifti_header(shape: tuple[int, int, int], code: int = 4, bits: int = 16) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return bytes(header)


def series(edit: Callable[[Dataset, int], None] | None = None, without: tuple[int, ...] = ()) -> Build:
    def build(folder: Path) -> Path:
        write_series(folder / "series", marked_array(), axial_affine(), edit=edit)
        for z in without:
            next((folder / "series").glob(f"*_{z}.dcm")).unlink()
        return folder / "series"

    return build


def copied_slice(folder: Path) -> Path:
    path = series()(folder)
    shutil.copy(next(path.glob("*_2.dcm")), path / "copy.dcm")
    return path


def doubled(different: bool) -> Build:
    """A second image, with its own UID, at the place of slice 2."""

    def build(folder: Path) -> Path:
        path = series()(folder)
        twin = ct_slice(marked_array()[2] + np.int16(different), axial_affine(), 2)
        twin.SeriesInstanceUID, twin.SeriesNumber = _uid_of(path), 1
        twin.save_as(path / "twin.dcm", enforce_file_format=True)
        return path

    return build


def _uid_of(path: Path) -> str:
    from pydicom import dcmread

    return str(dcmread(next(path.glob("*_0.dcm"))).SeriesInstanceUID)


def shift_last(millimetres: float) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, z: int) -> None:
        if z == 4:
            place = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [place[0], place[1], float(place[2]) + millimetres]

    return edit


def other_size(dataset: Dataset, z: int) -> None:
    if z == 1:
        set_pixels(dataset, np.zeros((4, 4), dtype=np.int16))


def truncated_slice(folder: Path) -> Path:
    path = series()(folder)
    victim = next(path.glob("*_3.dcm"))
    victim.write_bytes(victim.read_bytes()[:-40])
    return path


def broken_header(folder: Path) -> Path:
    path = series()(folder)
    victim = next(path.glob("*_3.dcm"))
    victim.write_bytes(b"")
    return path


def truncated(build: Build, share: float = 0.6) -> Build:
    def cut(folder: Path) -> Path:
        path = build(folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return cut


def noise_png(folder: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(folder / "image.png")
    return folder / "image.png"


def itk(suffix: str, compress: bool = False) -> Build:
    def build(folder: Path) -> Path:
        array = np.random.default_rng(0).integers(0, 4000, (9, 10, 11)).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"image{suffix}"), compress)
        return folder / f"image{suffix}"

    return build


def deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def deflated_bomb(folder: Path) -> Path:
    """A small image, deflated, behind which a private element inflates to 300 MB of zeros."""
    dataset = ct_slice(marked_array()[0], axial_affine(), 0)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(folder / "bomb.dcm", enforce_file_format=True)
    content = (folder / "bomb.dcm").read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    inner = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    size = 300 * 2**20
    element = struct.pack("<HH2sHI", 0x7FE1, 0x1001, b"OB", 0, size)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(inner + element)
    for _ in range(300):
        packed += packer.compress(bytes(2**20))
    (folder / "bomb.dcm").write_bytes(content[:start] + packed + packer.flush())
    return folder / "bomb.dcm"


def gzip_bomb(folder: Path) -> Path:
    with gzip.open(folder / "bomb.nii.gz", "wb") as file:
        file.write(nifti_header((640, 512, 480)))
        for _ in range(300):
            file.write(bytes(2**20))
    return folder / "bomb.nii.gz"


def png_bomb(folder: Path) -> Path:
    Image.new("L", (13000, 13000)).save(folder / "bomb.png")
    return folder / "bomb.png"


def zip_bomb(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.dcm", "w") as file:
        for _ in range(300):
            file.write(bytes(2**20))
    return folder / "bomb.zip"


def nrrd_bomb(folder: Path) -> Path:
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 640 512 480\nencoding: gzip\nendian: little\n\n"
    (folder / "bomb.nrrd").write_bytes(header + gzip.compress(bytes(300 * 2**20), 9))
    return folder / "bomb.nrrd"


def mha_bomb(folder: Path) -> Path:
    packed = zlib.compress(bytes(300 * 2**20), 9)
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = True\n"
        f"CompressedDataSize = {len(packed)}\nElementSpacing = 1 1 1\nDimSize = 640 512 480\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    (folder / "bomb.mha").write_bytes(header.encode() + packed)
    return folder / "bomb.mha"


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def only_notes(folder: Path) -> Path:
    (folder / "notes").mkdir()
    (folder / "notes" / "README.txt").write_text("nothing here")
    return folder / "notes"


def detached(name: str) -> bytes:
    return (
        "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 4 4\nencoding: raw\nspace directions: (1,0) (0,1)\n"
        f"data file: {name}\n"
    ).encode()


BOMBS: dict[str, Build] = {
    "gzip": gzip_bomb,
    "deflated-dicom": deflated_bomb,
    "png": png_bomb,
    "zip": zip_bomb,
    "nrrd-gzip": nrrd_bomb,
    "mha-zlib": mha_bomb,
}

REFUSED: dict[str, tuple[Build, str, str]] = {
    "missing slice": (series(without=(2,)), "1 slice is missing", "--fix-slices"),
    "uneven slices": (series(shift_last(1.2)), "uneven", "--fix-slices"),
    "copied slice": (copied_slice, "copies of another", "--fix-slices"),
    "duplicate slice": (doubled(False), "more than one image", "--fix-slices"),
    "different slice at one place": (doubled(True), "more than one image", "--fix-slices"),
    "slices of two sizes": (series(other_size), "differ from the others in size", "--fix-slices"),
    "truncated slice": (truncated_slice, r"_3.dcm: its pixel data are missing, cut short", "Copy or export"),
    "empty file in a series": (broken_header, r"empty \(0 bytes\)", "Copy or export"),
    "4D": (lambda f: nifti(f, np.zeros((3, 4, 5, 6), np.int16)), "holds 6 frames", "--frame 1 to --frame 6"),
    "complex": (lambda f: nifti(f, np.zeros((3, 4, 5), np.complex64)), "complex", "magnitude"),
    "all NaN": (lambda f: nifti(f, np.full((3, 4, 5), np.nan, np.float32)), "no pixel holds a finite", "Export"),
    "zero-sized": (text("image.nii", nifti_header((4, 0, 4)) + bytes(99)), "empty", "Export"),
    "header claims terabytes (nifti)": (text("image.nii", nifti_header((32000, 32000, 32000))), "claims", "MAX_VOXELS"),
    "header claims terabytes (nrrd)": (
        text(
            "i.nrrd", b"NRRD0004\ntype: short\ndimension: 3\nsizes: 99999 99999 999\nencoding: raw\nendian: little\n\nx"
        ),
        "claims",
        "MAX_VOXELS",
    ),
    "header claims terabytes (mha)": (
        text("i.mha", b"NDims = 3\nDimSize = 99999 99999 999\nElementType = MET_SHORT\nElementDataFile = LOCAL\nx"),
        "claims",
        "MAX_VOXELS",
    ),
    "header claims more than the file": (text("image.nii", nifti_header((64, 64, 64))), "claims 524640", "truncated"),
    "0 bytes (png)": (text("image.png", b""), r"empty \(0 bytes\)", "export"),
    "0 bytes (dcm)": (text("image.dcm", b""), r"empty \(0 bytes\)", "export"),
    "0 bytes (nii.gz)": (text("image.nii.gz", b""), r"empty \(0 bytes\)", "export"),
    "text named .dcm": (
        text("notes.dcm", b"Dear colleague, please find enclosed the images.\n" * 40),
        "not a DICOM",
        "name",
    ),
    "text named .png": (text("notes.png", b"Dear colleague" * 40), "not what its name", "export"),
    "text named .nii.gz": (text("notes.nii.gz", b"Dear colleague" * 40), "not what its name", "export"),
    "text named .mha": (text("notes.mha", b"Dear colleague" * 40), "not a MetaImage", "export"),
    "text": (text("notes.txt", b"Dear colleague" * 40), "no format", "Give PNG, JPEG"),
    "truncated png": (truncated(noise_png), "decoding the image failed", "copy or export"),
    "truncated nifti": (truncated(lambda f: nifti(f, np.ones((9, 9, 9), np.int16))), "claims", "truncated"),
    "truncated nifti gz": (
        truncated(lambda f: nifti(f, np.random.default_rng(0).normal(size=(9, 9, 9)), name="i.nii.gz")),
        "failed",
        "copy or export",
    ),
    "truncated mha": (truncated(itk(".mha")), "claims", "truncated"),
    "truncated mha zlib": (truncated(itk(".mha", compress=True)), "claims|end early", "truncated"),
    "truncated nrrd": (truncated(itk(".nrrd")), "claims", "truncated"),
    "truncated nrrd gz": (truncated(itk(".nrrd", compress=True)), "failed", "copy or export"),
    "empty folder": (empty_folder, "holds no DICOM images", "Give a folder"),
    "folder without images": (only_notes, "holds no DICOM images", "Give a folder"),
    "no such file": (lambda f: f / "absent.png", "no such file", "Check the name"),
    "device": (lambda f: Path(os.devnull), "neither a file nor a folder", "Save"),
    "NRRD data in another folder": (text("i.nhdr", detached("../../etc/passwd")), "another folder", "one file"),
    "NRRD data missing": (text("i.nhdr", detached("gone.raw")), "gone.raw.* missing", "same folder"),
    "gzip bomb": (gzip_bomb, "inflates", "bomb"),
    "png bomb": (png_bomb, "inflates", "bomb"),
}

HANDLED: dict[str, tuple[Build, dict[str, object], str]] = {
    "missing slice, fixed": (series(without=(2,)), {"fix_slices": True}, "1 slice is missing.*interpolated onto 5"),
    "uneven slices, fixed": (series(shift_last(1.2)), {"fix_slices": True}, "uneven.*interpolated onto 5"),
    "copied slice, fixed": (copied_slice, {"fix_slices": True}, "1 copies of slices .* dropped"),
    "duplicate slice, fixed": (doubled(False), {"fix_slices": True}, "1 exact duplicates"),
    "slices of two sizes, fixed": (series(other_size), {"fix_slices": True}, "1 of 5 slices differ.*left out"),
    "slightly uneven slices": (series(shift_last(0.1)), {}, "taken as even"),
    "constant": (lambda f: nifti(f, np.full((3, 4, 5), 7, np.int16)), {}, "same value .7."),
    "NaN": (lambda f: nifti(f, np.where(np.indices((3, 4, 5))[0] == 1, np.nan, 2.0)), {}, "20 values were not finite"),
    "4D, frame given": (lambda f: nifti(f, np.zeros((3, 4, 5, 6), np.int16)), {"frame": 2}, "same value"),
    "no orientation": (text("i.nii", nifti_header((2, 2, 2)) + bytes(range(16))), {}, "no orientation"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_refused_with_file_cause_and_remedy(row: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build, cause, remedy = REFUSED[row]
    path = build(tmp_path)
    with pytest.raises(InputError, match=f"(?s){cause}") as caught:
        read(path)
    assert remedy in str(caught.value)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value).upper()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("row", HANDLED)
def test_handled_and_reported(row: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build, options, expected = HANDLED[row]
    volume = read(build(tmp_path), **options)  # type: ignore[arg-type]
    assert any(re.search(expected, fix) for fix in volume.fixes), volume.fixes
    assert np.isfinite(volume.array).all()
    assert capfd.readouterr() == ("", "")


def test_interpolated_series_has_the_missing_slice_between_its_neighbours(tmp_path: Path) -> None:
    volume = read(series(without=(2,))(tmp_path), fix_slices=True)
    kept = marked_array().astype(float)
    assert np.array_equal(volume.array[0, [0, 1, 3, 4]], kept[[0, 1, 3, 4]])
    assert np.array_equal(volume.array[0, 2], np.rint((kept[1] + kept[3]) / 2))
    assert np.allclose(volume.affine, axial_affine())
    assert volume.source.headers == ()


def test_duplicates_that_differ_are_never_dropped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"they differ.*export the series again"):
        read(doubled(True)(tmp_path), fix_slices=True)


def test_dropping_duplicates_keeps_array_and_headers(tmp_path: Path) -> None:
    volume = read(doubled(False)(tmp_path), fix_slices=True)
    assert np.array_equal(volume.array[0], marked_array())
    assert len(volume.source.headers) == 5


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_bounded_memory(name: str, tmp_path: Path) -> None:
    """Each claims or inflates to 160 to 315 MB; the reader may not grow by more than a fraction of that."""
    path = BOMBS[name](tmp_path)
    assert path.stat().st_size < 2**20
    code = (
        "import resource, sys\n"
        "import nibabel, pydicom, SimpleITK, PIL.Image\n"
        "from lexitome.errors import InputError\n"
        "from lexitome.io import read\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read(sys.argv[1])\n"
        "except InputError as error:\n    print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    message, grown = done.stdout.strip().splitlines()
    assert message.startswith(f"{path}: inflates") and "bomb" in message
    assert int(grown) < 100
    assert done.stderr == ""


def test_unreadable_file_is_one_clear_line(tmp_path: Path) -> None:
    """Root may read anything, so the reader runs as an ordinary user."""
    path = noise_png(tmp_path)
    path.chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    code = (
        "import os, sys\n"
        "from lexitome.errors import InputError\n"
        "import lexitome.io.raster\n"
        "from lexitome.io import read\n"
        "if os.geteuid() == 0:\n    os.setuid(65534)\n"
        "try:\n    read(sys.argv[1])\n"
        "except InputError as error:\n    print(error.cause)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "cannot be read (Permission denied)"
    assert done.stderr == ""


def test_limits_can_be_lowered_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = noise_png(tmp_path)
    monkeypatch.setenv("LEXITOME_MAX_VOXELS", "4095")
    with pytest.raises(InputError, match=r"claims 4.1e"):
        read(path)
    monkeypatch.setenv("LEXITOME_MAX_VOXELS", "4096")
    assert read(path).grid == (1, 64, 64)
    monkeypatch.setenv("LEXITOME_MAX_VOXELS", "many")
    with pytest.raises(InputError, match=r"not a whole number"):
        read(path)
