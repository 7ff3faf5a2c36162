"""Ranks that are threads of one process: what they gather is what each of them gave."""

import threading
from collections.abc import Callable
from typing import Any

WAIT = 20  # seconds for the other ranks


def on_threads(count: int, work: Callable[[int, Callable[[Any], list]], Any]) -> list[Any]:
    """What `work(rank, gather)` returns, or raises, on each of `count` ranks that run side by side."""
    barrier, values, ends = threading.Barrier(count), [None] * count, [None] * count

    def run(rank):
        def gather(value):
            values[rank] = value
            barrier.wait(WAIT)
            found = list(values)
            barrier.wait(WAIT)
            return found

        try:
            ends[rank] = work(rank, gather)
        except Exception as error:
            ends[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * WAIT)
    assert not any(thread.is_alive() for thread in threads)
    return ends
