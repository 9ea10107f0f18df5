"""A lock has one holder, and none that is dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lexitome.errors import InputError
from lexitome.io.locks import Held, holding

HOLDER = """
import sys, time
from pathlib import Path
from lexitome.io.locks import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    started = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "held\n"
    return started


def test_the_second_is_told_who_holds_it_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.lock"
    with holding(path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(Held, match=f"process {os.getpid()}"), holding(path):
            pytest.fail("held twice")
        assert path.exists()  # who was refused leaves it alone
    assert list(path.parent.iterdir()) == []
    with holding(path):
        pass


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), holding(tmp_path / "lock"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_another_process_holds_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = start_holder(path)
    with pytest.raises(Held, match=f"process {holder.pid}"), holding(path):
        pytest.fail("held twice")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert path.read_text() == f"{holder.pid}\n"  # what a dead process left
    with holding(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_the_number_of_a_dead_process_that_lives_again_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(f"{os.getppid()}\n")
    with holding(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_those_who_wait_hold_one_after_the_other(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with holding(tmp_path / "lock", wait=True):
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1 and inside == 0 and list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), holding(tmp_path / "file" / "lock"):
        pass
