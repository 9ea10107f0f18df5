import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexitome.io.names import MAX_BYTES, file_stems


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("polyp", "polyp"),
        ("Left  Kidney", "left_kidney"),
        ("간 종양", "간_종양"),
        ("肝脏", "肝脏"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("a\\b:c*d?", "a_b_c_d_"),
        ("nul", "mask_nul"),
        ("COM1", "mask_com1"),
        ("con.txt", "mask_con.txt"),
        ("preview", "mask_preview"),
        ("..", "finding"),
        ("   ", "finding"),
        ("liver\u202egpj", "liver_gpj"),
        ("polyp\n", "polyp"),
    ],
)
def test_stem(prompt: str, stem: str) -> None:
    assert file_stems([prompt]) == [stem]


def test_collisions_are_numbered_in_order() -> None:
    assert file_stems(["Liver", "liver", "liver_2", "LIVER"]) == ["liver", "liver_2", "liver_2_2", "liver_3"]


def test_long_names_stay_different_and_whole_characters() -> None:
    first, second = file_stems(["간" * 200, "간" * 201])
    assert first != second
    assert max(len(first.encode()), len(second.encode())) <= MAX_BYTES


@given(st.lists(st.text(max_size=200), max_size=6))
def test_any_text_gives_distinct_names_inside_the_folder(names: list[str]) -> None:
    stems = file_stems(names)
    assert len({unicodedata.normalize("NFKC", stem).casefold() for stem in stems}) == len(names)
    for stem in stems:
        path = Path("folder") / f"{stem}.nii.gz"
        assert path.parent == Path("folder")
        assert stem
        assert not stem.startswith(".")
        assert len(path.name.encode()) < 200
        assert not any(unicodedata.category(char).startswith("C") for char in stem)
