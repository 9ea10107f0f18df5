"""Which segmenter a model gets, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lexitome.errors import InputError
from lexitome.inference.loading import check_model, load_segmenter
from lexitome.inference.segmenter import Segmenter
from lexitome.models.foundation import WEIGHTS_FOLDER


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_FOLDER, raising=False)
    try:
        from huggingface_hub import constants
    except ImportError:
        return
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_names_of_the_catalog_get_the_compact_segmenter() -> None:
    assert isinstance(load_segmenter("compact", threads=1), Segmenter)


@pytest.mark.parametrize(("option", "value"), [("policy", "union"), ("side", 560)])
def test_options_of_sam3_are_not_ignored(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"--{option}: is an option of SAM3"):
        load_segmenter("compact", **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sam3", "medical-sam3"])
def test_missing_weights_are_said_before_anything_is_read(name: str) -> None:
    with pytest.raises(InputError, match=r"not on this machine.*hf download"):
        check_model(name)


def test_sam_is_a_baseline_only() -> None:
    with pytest.raises(InputError, match=r"boxes alone.*lexitome evaluate"):
        check_model("sam")


def test_without_the_packages_the_message_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sam3.pt").touch()
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from lexitome.inference.loading import load_segmenter\n"
        "try: load_segmenter(sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "sam3.pt")], capture_output=True, text=True, check=True, timeout=120
    )
    assert "needs torch" in done.stdout and 'pip install "lexitome[train]"' in done.stdout
