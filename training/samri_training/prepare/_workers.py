"""Cutting many volumes, in this process or in several."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from samri.errors import OutputError
from samri_training.prepare._cut import Cut, CutCase, Refused, cut_pair
from samri_training.prepare._sources import SourcePair


def cut_all(
    pairs: Sequence[SourcePair],
    folders: Sequence[Path],
    how: Cut,
    num_workers: int,
    progress: Callable[[int, int], None],
) -> list[list[CutCase] | Refused]:
    """Cut each pair into its folder; results in the order of the pairs, whatever the number of processes.

    Raises:
        OSError: A slice can't be written.
        OutputError: A worker was killed.
    """
    cut = partial(cut_pair, how=how)
    if num_workers == 0 or not pairs:
        return _counted(map(cut, pairs, folders), len(pairs), progress)
    # Spawned, not forked: the same on every system, and safe whatever threads the caller has.
    context = multiprocessing.get_context("spawn")
    workers = min(num_workers, len(pairs))
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_the_parent) as pool:
            return _counted(pool.map(cut, pairs, folders), len(pairs), progress)
    except BrokenProcessPool as error:
        raise OutputError(
            "a worker process was killed, as happens when memory runs out: use fewer --num-workers"
        ) from error


def _counted(
    results: Iterable[list[CutCase] | Refused], total: int, progress: Callable[[int, int], None]
) -> list[list[CutCase] | Refused]:
    done = []
    for result in results:
        done.append(result)
        progress(len(done), total)
    return done


def _follow_the_parent() -> None:
    """Ctrl-C and a closed terminal are the parent's to handle; its workers end when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
