"""The command as a process: help, one-line errors, exit codes. None of these inputs reaches a model."""

from __future__ import annotations

import gzip
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.cli.console import BAD_INPUT, EXIT_CODES, INTERRUPTED, OK, SOME_FAILED, UNEXPECTED, explain
from lexitome.errors import InputError

COMMANDS = ("segment", "demo", "models", "info", "doctor", "check")


def lexitome(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "import sys; from lexitome.cli import main; sys.exit(main())",
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_help_is_quick() -> None:
    """Best of three: the bound is about what is imported."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert lexitome("--help").returncode == OK
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_help_names_every_command() -> None:
    shown = lexitome("--help").stdout
    assert all(command in shown for command in COMMANDS)
    assert lexitome().stdout == shown


def test_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\nfrom lexitome.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['segment', '--help'])\n"
        "print(*{'torch', 'numpy', 'SimpleITK', 'pydicom', 'nibabel', 'onnxruntime', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_version() -> None:
    from lexitome import __version__

    assert lexitome("--version").stdout == f"lexitome {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("segmnt",), "No such command"),
        (("segment", "--nonsense"), "No such option"),
        (("segment",), "-i"),
        (("segment", "-i", "a.png", "-o", "out"), "say what to find"),
        (("segment", "-i", "a.png", "-o", "out", "-t", "polyp", "--format", "bmp"), "'--format'"),
        (("segment", "-i", "a.png", "-o", "out", "--box", "1,2,3"), "1,2,3"),
        (("segment", "-i", "a.png", "-o", "out", "--point", "1"), "'--point'"),
        (("segment", "-i", "a.png", "-o", "out", "-t", "polyp", "--threads", "0"), "'--threads'"),
        (("segment", "-i", "a.png", "--jobs", "jobs.json"), "--jobs"),
        (("check",), "Missing argument"),
    ],
)
def test_bad_usage(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    done = lexitome(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert word in done.stderr
    assert everything_below(tmp_path) == set()


def _gzip_bomb(path: Path) -> None:
    """A NIfTI header that is right, followed by 200 MB of zeros in 200 kB."""
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_shape((512, 512, 400))
    header.set_data_dtype(np.uint8)
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        for _ in range(200):
            file.write(bytes(2**20))


def _huge_header(path: Path) -> None:
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_shape((32767, 32767, 32767))
    path.write_bytes(header.binaryblock + b"\0\0\0\0")


def _truncated_png(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1000])


def _empty_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        pass


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "zero.png": lambda path: path.write_bytes(b""),
    "zero.nii.gz": lambda path: path.write_bytes(b""),
    "text.dcm": lambda path: path.write_text("this is not an image\n" * 50),
    "text.png": lambda path: path.write_text("this is not an image"),
    "noise.bin": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "truncated.png": _truncated_png,
    "bomb.nii.gz": _gzip_bomb,
    "terabytes.nii": _huge_header,
    "empty.zip": _empty_zip,
    "empty-folder": lambda path: path.mkdir(),
}


@pytest.fixture(params=sorted(BAD_FILES))
def bad_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "in" / request.param
    path.parent.mkdir()
    BAD_FILES[request.param](path)
    yield path


@pytest.mark.parametrize("command", ["segment", "check"])
def test_bad_input_is_one_line_and_writes_nothing(bad_file: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    options = ("-i", bad_file, "-o", out, "-t", "polyp") if command == "segment" else (bad_file,)
    before = everything_below(tmp_path)
    done = lexitome(command, *options)
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    assert done.stderr.startswith(f"error: {bad_file}: ") and done.stderr.count("\n") == 1
    assert done.stderr.rstrip().endswith((".", "?"))
    assert everything_below(tmp_path) == before


def test_one_bad_input_among_several_does_not_stop_the_rest(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(good)
    done = lexitome("check", tmp_path / "missing.png", good)
    assert done.returncode == SOME_FAILED
    assert str(good) in done.stdout
    assert f"error: {tmp_path / 'missing.png'}: " in done.stderr and done.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = lexitome("check", tmp_path / "missing.png", "--debug")
    assert done.returncode == BAD_INPUT
    assert "Traceback" in done.stderr
    assert "Traceback" not in lexitome("check", tmp_path / "missing.png").stderr


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (InputError("a.png", "is empty", "Copy it again."), BAD_INPUT, "a.png: is empty. Copy it again."),
        (MemoryError(), BAD_INPUT, "memory"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (RuntimeError("two\nlines"), UNEXPECTED, "RuntimeError: two lines"),
    ],
)
def test_errors_have_one_line_and_a_code(error: BaseException, code: int, word: str) -> None:
    found, line = explain(error)
    assert found == code in EXIT_CODES
    assert word in line and "\n" not in line
