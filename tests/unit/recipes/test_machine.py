"""What is read of a computer's memory and cores, from the files that a system writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lexitome.recipes.machine import free_memory, this_machine, usable_cores

GB = 2**30


def system(root: Path, **files: str) -> Path:
    """Files by name, dots and slashes written as __dot__ and __in__."""
    for name, text in files.items():
        path = root / name.replace("__dot__", ".").replace("__in__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return system(tmp_path / "proc", meminfo="MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n")


def test_what_the_kernel_calls_available(proc: Path, tmp_path: Path) -> None:
    assert free_memory(proc, tmp_path / "none") == 8 * GB


@pytest.mark.parametrize(("limit", "expected"), [("2147483648", 1.25), ("max", 8), ("1073741824000", 8)])
def test_a_container_has_less(proc: Path, tmp_path: Path, limit: str, expected: float) -> None:
    """Of 2 GB, 1 GB is used, a quarter of which are files that can be read again."""
    statistics = "anon 1\ninactive_file 268435456\nactive_file 7\n"
    group = system(tmp_path / "group", memory__dot__max=limit + "\n", memory__dot__current="1073741824\n",
                   memory__dot__stat=statistics)  # fmt: skip
    assert free_memory(proc, group) == expected * GB


def test_a_container_of_the_first_version(proc: Path, tmp_path: Path) -> None:
    group = system(tmp_path / "group", memory__in__memory__dot__limit_in_bytes="2147483648",
                   memory__in__memory__dot__usage_in_bytes="1073741824",
                   memory__in__memory__dot__stat="total_inactive_file 1073741824")  # fmt: skip
    assert free_memory(proc, group) == 2 * GB


def test_without_these_files_a_part_of_what_there_is(tmp_path: Path) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert free_memory(tmp_path, tmp_path) == total // 2


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None),
                                                 ("99900000 100000", None), ("nonsense", None)])  # fmt: skip
def test_cores_of_a_container(tmp_path: Path, quota: str, expected: int | None) -> None:
    own = len(os.sched_getaffinity(0))
    group = system(tmp_path, cpu__dot__max=quota)
    assert usable_cores(group) == (own if expected is None else min(own, expected))


def test_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = this_machine()
    assert found.ranks == 1 and found.cores == usable_cores() and found.threads == 3
    assert found.memory is not None and 10**8 < found.memory < 10**14
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert this_machine().threads is None
    if found.device == "cpu":
        assert found.precision is None
