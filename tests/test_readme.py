"""The README's commands do what it says: blocks marked `<!-- run -->` are run in order, in one empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNNABLE = re.compile(r"<!-- run -->\n```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(language: str, code: str, folder: Path) -> str:
    command = {"sh": ["bash", "-euo", "pipefail", "-c", code], "python": [sys.executable, "-c", code]}[language]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCKS = [(match["language"], match["code"]) for match in RUNNABLE.finditer(README)]


def test_there_is_a_shell_and_a_python_block() -> None:
    assert [language for language, _ in BLOCKS] == ["sh", "python"]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number: int, workplace: Path) -> None:
    language, code = BLOCKS[number]
    assert run(language, code, workplace)
    if language == "sh":
        expected = ("out/polyp.png", "out/retinal_vessel.png", "out/preview.png", "out/statistics.json",
                    "out/report.json", "batch/fundus/retinal_vessel.png", "seg/segmentation.dcm", "click/points.png",
                    "demo-output/fundus/preview.png", "demo-output/abdomen-mr/report.json")  # fmt: skip
        assert not [name for name in expected if not (workplace / name).is_file()]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    mentioned = set(re.findall(r"\bmake (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert {"demo", "test", "bench", "docs"} <= mentioned
    assert not [target for target in mentioned if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
