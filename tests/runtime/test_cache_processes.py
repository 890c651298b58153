"""One cache folder, several processes at once, and some of them killed in the middle of a write."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from samri_runtime import Embedding
from samri_runtime.cache import EmbeddingCache

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")

SHAPE = (1, 16, 16, 16)
ID = "f" * 32
WORKER = """
import sys
import numpy as np
from samri_runtime import Embedding
from samri_runtime.cache import EmbeddingCache

folder, seed, rounds, room = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
cache = EmbeddingCache(folder, max_bytes=room)
rng = np.random.default_rng(seed)
hits = 0
for turn in range(rounds):
    number = int(rng.integers(8))
    key, expected = f"{number:064x}", np.full((1, 16, 16, 16), number, np.float32)
    found, notes = cache.find(key, "f" * 32, expected.shape)
    assert notes == (), notes
    if found is None:
        kept = cache.keep(key, Embedding(expected, (3, 4), "f" * 32))
        assert kept.notes == (), kept.notes
    else:
        assert np.array_equal(found.features, expected), number
        hits += 1
    if turn == 0:
        print("at work", flush=True)
print(hits)
"""
# Killed with half of the embedding written: what the disk then holds is what a power cut or the OOM killer leaves.
DIES_WRITING = """
import os, signal, sys
import numpy as np
from samri_runtime import Embedding
from samri_runtime.cache import EmbeddingCache, _cache

def half_then_die(descriptor, data):
    os.write(descriptor, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

_cache._write_all = half_then_die
EmbeddingCache(sys.argv[1]).keep("1" * 64, Embedding(np.ones((1, 16, 16, 16), np.float32), (3, 4), "f" * 32))
"""


def key_of(number: int) -> str:
    return f"{number:064x}"


def start(folder: Path, seed: int, rounds: int, room: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, *map(str, (folder, seed, rounds, room))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_entries(cache: EmbeddingCache) -> int:
    """Every entry is whole and its own; how many there are."""
    found = [cache.find(key_of(number), ID, SHAPE) for number in range(8)]
    for number, (embedding, notes) in enumerate(found):
        assert notes == ()
        assert embedding is None or np.array_equal(embedding.features, np.full(SHAPE, number, np.float32))
    return sum(embedding is not None for embedding, _ in found)


def entry_bytes(folder: Path) -> int:
    probe = EmbeddingCache(folder)
    probe.keep(key_of(0), Embedding(np.zeros(SHAPE, np.float32), (3, 4), ID))
    return probe.path_of(key_of(0)).stat().st_size


@pytest.mark.slow
def test_processes_that_share_a_folder_never_see_half_an_entry_and_hold_the_size(tmp_path: Path) -> None:
    room = 3 * entry_bytes(tmp_path / "probe")
    folder = tmp_path / "cache"
    workers = [start(folder, seed, 400, room) for seed in range(4)]
    for worker in workers:
        out, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
        assert int(out.split()[-1]) > 0
    cache = EmbeddingCache(folder)
    assert 1 <= check_entries(cache) <= 3
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= room
    assert {
        hashlib.sha256(path.read_bytes()[:-32]).digest() == path.read_bytes()[-32:] for path in cache.folder.iterdir()
    } == {True}


@pytest.mark.slow
def test_killed_processes_leave_no_half_entry_and_disturb_no_other(tmp_path: Path) -> None:
    room = 3 * entry_bytes(tmp_path / "probe")
    folder = tmp_path / "cache"
    survivor = start(folder, 0, 1500, room)
    moments = random.Random(0)
    killed = 0
    for seed in range(1, 7):
        victim = start(folder, seed, 10**9, room)
        assert victim.stdout is not None
        assert victim.stdout.readline() == "at work\n"
        time.sleep(moments.uniform(0, 0.05))
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        killed += victim.returncode == -signal.SIGKILL
    assert killed == 6
    _, errors = survivor.communicate(timeout=300)
    assert survivor.returncode == 0, errors
    assert check_entries(EmbeddingCache(folder)) >= 1


def test_a_process_killed_in_the_middle_of_a_write_leaves_what_is_cleaned_up_once_it_is_old(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DIES_WRITING, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    cache = EmbeddingCache(tmp_path)
    (left,) = cache.folder.iterdir()
    assert left.suffix == ".unfinished"
    assert left.stat().st_mode & 0o077 == 0
    assert cache.find("1" * 64, ID, SHAPE) == (None, ())

    cache.keep(key_of(1), Embedding(np.ones(SHAPE, np.float32), (3, 4), ID))
    assert left.exists(), "another process may be writing it right now"
    an_hour_ago = time.time() - 3600
    os.utime(left, (an_hour_ago, an_hour_ago))
    cache.keep(key_of(2), Embedding(np.full(SHAPE, 2, np.float32), (3, 4), ID))
    assert not left.exists()
    assert check_entries(cache) == 2
