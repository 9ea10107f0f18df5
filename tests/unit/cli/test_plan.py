"""Which inputs there are and where each writes to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.cli.jobs_file import read_jobs
from lexitome.cli.options import Ask, Click, Corners
from lexitome.cli.plan import folder_names, plan, stem
from lexitome.cli.staging import REPORT
from lexitome.errors import InputError

ASK = Ask(("polyp",))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """a.png, b.png and sub/a.png."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/a.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / name)
    return folder


def test_one_input_writes_to_the_folder_itself(images: Path, tmp_path: Path) -> None:
    (job,) = plan([images / "a.png"], tmp_path / "out", ASK)
    assert (job.source, job.folder, job.ask) == (images / "a.png", tmp_path / "out", ASK)


def test_several_write_to_folders_of_their_own(images: Path, tmp_path: Path) -> None:
    jobs = plan([images / "a.png", images / "b.png"], tmp_path / "out", ASK)
    assert [job.folder.relative_to(tmp_path / "out").as_posix() for job in jobs] == ["a", "b"]


def test_a_folder_is_several_even_with_one_image(images: Path, tmp_path: Path) -> None:
    (job,) = plan([images / "sub"], tmp_path / "out", ASK)
    assert job.folder == tmp_path / "out" / "a"


def test_same_names_are_told_apart(images: Path, tmp_path: Path) -> None:
    names = {job.folder.name: job.source for job in plan([images], tmp_path / "out", ASK)}
    assert names == {"in_a": images / "a.png", "b": images / "b.png", "sub_a": images / "sub" / "a.png"}


def test_same_stem_in_one_folder() -> None:
    assert folder_names([Path("x/a.png"), Path("x/a.nii.gz"), Path("x/A.jpg")]) == ["x_a.png", "x_a.nii.gz", "x_A.jpg"]


def test_inputs_that_cannot_be_told_apart() -> None:
    with pytest.raises(InputError, match="shares its name"):
        folder_names([Path("1/x/a.png"), Path("2/x/a.png")])


@pytest.mark.parametrize(
    ("name", "expected"), [("ct.nii.gz", "ct"), ("CT.NII.GZ", "CT"), ("a.b.png", "a.b"), ("series.zip", "series")]
)
def test_stem(name: str, expected: str) -> None:
    assert stem(Path(name)) == expected


def test_results_of_an_earlier_run_are_no_inputs(images: Path, tmp_path: Path) -> None:
    (images / "sub" / REPORT).write_text("{}")
    assert {job.source.name for job in plan([images], tmp_path / "out", ASK)} == {"a.png", "b.png"}
    with pytest.raises(InputError, match="earlier runs"):
        plan([images / "sub"], tmp_path / "out", ASK)


def test_one_missing_among_several_is_left_to_the_run(images: Path, tmp_path: Path) -> None:
    jobs = plan([images / "missing.png", images / "a.png"], tmp_path / "out", ASK)
    assert {job.source.name for job in jobs} == {"missing.png", "a.png"}
    with pytest.raises(InputError, match="no such file"):
        plan([images / "missing.png"], tmp_path / "out", ASK)


@pytest.mark.parametrize("name", ["mask.png", "seg.dcm", "ct.nii.gz"])
def test_output_must_be_a_folder(images: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="named like a file"):
        plan([images / "a.png"], tmp_path / name, ASK)
    with pytest.raises(InputError, match="is a file"):
        plan([images / "a.png"], images / "b.png", ASK)


def jobs_file(folder: Path, content: object) -> Path:
    path = folder / "jobs.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_jobs_file(tmp_path: Path) -> None:
    entries = [
        {"input": "a.png", "output": "out/a", "text": "polyp", "boxes": [[1, 2, 3, 4]], "points": ["5,6,-"]},
        {"input": "ct/", "output": "out/ct", "prompts": ["liver", "spleen"], "series": 3},
        {"input": "b.png", "output": "out/b"},
    ]
    first, second, third = read_jobs(jobs_file(tmp_path, entries), ASK)
    assert first.ask == Ask(("polyp",), (Corners((1.0, 2.0, 3.0, 4.0)),), (Click((5.0, 6.0), inside=False),))
    assert second.ask == Ask(("liver", "spleen"), series="3")
    assert second.source == Path("ct")
    assert third.ask.texts == ASK.texts


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "not JSON"),
        ({"input": "a"}, "not a list"),
        ([], "not a list"),
        (["a.png"], "job 1"),
        ([{"input": "a.png"}], "job 1: output"),
        ([{"input": "a.png", "output": "o", "txt": "polyp"}], "job 1: txt"),
        ([{"input": "a.png", "output": "o", "boxes": [[1, 2, 3]]}], "job 1: '1.0,2.0,3.0' is not"),
        ([{"input": "a.png", "output": "o"}, {"input": "b.png", "output": "o"}], "job 2 writes"),
        ([{"input": "a.png", "output": "o.png"}], "named like a file"),
    ],
)
def test_bad_jobs_files(tmp_path: Path, content: object, word: str) -> None:
    with pytest.raises(InputError, match=word):
        read_jobs(jobs_file(tmp_path, content), ASK)


def test_jobs_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_jobs(tmp_path / "jobs.json", ASK)
