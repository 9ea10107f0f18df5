"""Loading SAM3 takes no more memory than 1.2 times its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

sam3_load = pytest.importorskip("sam3_load")

NEEDED_GB = 14
STATUS, MEMORY = Path("/proc/self/status"), Path("/proc/meminfo")
linux = pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell the memory of a process")


def free_gb() -> float:
    lines = dict(line.split(":") for line in MEMORY.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20


@linux
@pytest.mark.slow
def test_form_of_the_result(tmp_path: Path) -> None:
    path = sam3_load.write_official(tmp_path, "tiny")
    found = sam3_load.measure(path, "bfloat16", True)
    assert found["tracker"] and found["seconds"] > 0 and found["peak_mb"] > 0


@linux
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_of_the_full_size(tmp_path_factory: pytest.TempPathFactory, dtype: str) -> None:
    folder = tmp_path_factory.mktemp("full")
    if free_gb() < NEEDED_GB or shutil.disk_usage(folder).free < 8e9:
        pytest.skip(f"needs {NEEDED_GB} GB of free memory and 8 GB of disk")
    try:
        found = sam3_load.measure(sam3_load.write_official(folder, "full"), dtype, True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert found["peak_to_weights_in_file"] <= 1.2
