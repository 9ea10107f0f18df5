"""Model folders that tests of this directory share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import Bright, tiny_net, write_model

from lexitome.inference.segmenter import Segmenter


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny `CompactNet` with random weights."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model", tiny_net())


@pytest.fixture(scope="session")
def bright_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model.Bright`."""
    return write_model(tmp_path_factory.mktemp("bright") / "model", Bright())


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Segmenter:
    return Segmenter.load(tiny_folder, threads=1)


@pytest.fixture(scope="session")
def bright(bright_folder: Path) -> Segmenter:
    return Segmenter.load(bright_folder, threads=1)
