"""A thread that prepares pictures beside a network that computes. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def beside() -> Iterator[ThreadPoolExecutor]:
    """A pool of one thread, in which torch computes alone.

    torch would start a second team of threads for it, which waits in loops and takes the cores from the first.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, "beside", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # what was said in the thread would hold for all that are started later
