"""Reading an embedding store against the loop it replaces: one compressed float32 .npz a slice.

    python benchmarks/embedding_store.py [--slices 48] [--rounds 5] [--largest 1024] [--folder DIR]

Both hold the same slices: embeddings of ViT-B's size, (256, 64, 64), and label maps of 256 x 256. Each round reads all
slices in one random order through each of the two, in turn, into arrays of its own, as a batch of training needs them.
Once with the files in the system's cache, once with that cache dropped; there, plain reads of the same embeddings in
the same order say what the disk gives. Then processes of their own read ever larger stores, while the system's cache is
kept far smaller than the store, and say how much memory they took.

The embeddings are noise: like real ones, they don't compress.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from samri.preprocessing import ProfileName
from samri_training.store import EmbeddedSlice, EmbeddingStore, EncoderFacts, ShardWriter, StoreInfo, StorePlan
from samri_training.store._shard_file import HEADER_BYTES

SHAPE = (256, 64, 64)
CACHED_SLICES = 64
PROFILE: ProfileName = "samri"
MEGABYTE = 1e6


def slices(count: int) -> Iterator[EmbeddedSlice]:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((SHAPE[0] + 64, *SHAPE[1:]), dtype=np.float32)
    rows, columns = np.mgrid[:256, :256]
    for index in range(count):
        mask = sum(
            (label * (np.hypot(rows - y, columns - x) < radius)).astype(np.uint8)
            for label, (y, x, radius) in enumerate(rng.uniform(30, 200, (3, 3)) * (1, 1, 0.2), start=1)
        )
        # Another stretch of the same noise for each slice: making it isn't what is measured.
        features = noise[index % 64 : index % 64 + SHAPE[0]]
        yield EmbeddedSlice(f"case{index:06d}_img_0", f"case{index:06d}", features, np.asarray(mask), (1.0, 1.0))


def write_store(folder: Path, count: int) -> Path:
    facts = EncoderFacts("0" * 32, PROFILE, 1024, SHAPE, "vit_b", "fp32", "noise.pth", "0" * 64)
    info = StoreInfo.of(facts, "fp16", "slices")
    plan = StorePlan.of(info, [(f"case{index:06d}_img_0", f"case{index:06d}") for index in range(count)])
    plan.begin(folder)
    items = slices(count)
    for shard in plan.shards:
        with ShardWriter(folder, info, shard, 1) as writer:
            for _ in range(shard.count):
                writer.append([next(items)])
            writer.seal({})
    return folder


def write_archives(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True)
    paths = []
    for item in slices(count):
        paths.append(folder / f"{item.name}.npz")
        np.savez_compressed(paths[-1], img=item.features[None], mask=item.mask[None], ori_size=item.mask.shape)
    return paths


def read_store(store: EmbeddingStore, order: list[int]) -> int:
    read = 0
    for index in order:
        stored = store[index]
        read += np.array(stored.features).nbytes + stored.mask.nbytes
    return read


def read_archives(paths: list[Path], order: list[int]) -> int:
    read = 0
    for index in order:
        with np.load(paths[index]) as archive:
            read += archive["img"].nbytes + archive["mask"].nbytes + archive["ori_size"].nbytes
    return read


def read_plainly(folder: Path, order: list[int]) -> int:
    """The same bytes in the same order by plain reads into one buffer: what the disk gives."""
    plan = StorePlan.read(folder)
    size = plan.info.bytes_per_slice
    buffer = bytearray(size)
    read = 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / f"{s.name}.safetensors").open("rb", buffering=0)) for s in plan.shards]
        for index in order:
            shard, place = divmod(index, plan.slices_per_shard)
            files[shard].seek(HEADER_BYTES + place * size)
            read += files[shard].readinto(buffer)
    return read


def forget(folder: Path) -> None:
    """Ask the system to drop these files from its cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def spread(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:9.2f}  ({low:.2f} to {high:.2f})"


def compare(root: Path, count: int, rounds: int) -> None:
    store_folder, archive_folder = write_store(root / "store", count), root / "archives"
    paths = write_archives(archive_folder, count)
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.iterdir()) for folder in (store_folder, archive_folder)
    }
    print(f"{count} slices: store {sizes['store'] / MEGABYTE:.0f} MB, .npz {sizes['archives'] / MEGABYTE:.0f} MB\n")
    check_same(EmbeddingStore.open(store_folder), paths)
    print(f"{'milliseconds a slice':34}{'median':>9}  (p10 to p90)")
    for state in ("cached", "cold"):
        times: dict[str, list[float]] = {"store": [], "npz": [], "plain": []}
        # The first pass of a process compares checksums, so it is a kind of its own; a store stays open for all epochs.
        store = EmbeddingStore.open(store_folder)
        first = seconds(lambda store=store: read_store(store, list(range(count)))) / count * 1e3
        read_archives(paths, list(range(count)))
        for turn in range(rounds):
            order = np.random.default_rng(turn).permutation(count).tolist()
            for name, action in (
                ("store", lambda store=store, order=order: read_store(store, order)),
                ("npz", lambda order=order: read_archives(paths, order)),
                ("plain", lambda order=order: read_plainly(store_folder, order)),
            ):
                if state == "cold":
                    store.close()
                    forget(store_folder)
                    forget(archive_folder)
                times[name].append(seconds(action) / count * 1e3)
        print(f"{f'store, {state}':34}{spread(times['store'])}")
        print(f"{f'compressed float32 .npz, {state}':34}{spread(times['npz'])}")
        print(f"{f'plain reads, same order, {state}':34}{spread(times['plain'])}")
        if state == "cached":
            print(f"{'store, first pass (checksums)':34}{first:9.2f}")
        ratio = np.median(times["npz"]) / np.median(times["store"])
        speed = sizes["store"] / count / np.median(times["store"]) * 1e3 / MEGABYTE
        disk = sizes["store"] / count / np.median(times["plain"]) * 1e3 / MEGABYTE
        print(f"  {state}: {ratio:.1f} times as fast as .npz; {speed:.0f} MB/s, plain reads {disk:.0f} MB/s\n")


def check_same(store: EmbeddingStore, paths: list[Path]) -> None:
    for index, path in enumerate(paths):
        with np.load(path) as archive:
            assert np.array_equal(store[index].features, archive["img"][0].astype(np.float16)), path
            assert np.array_equal(store[index].mask, archive["mask"][0]), path


def memory(root: Path, largest: int) -> None:
    print(f"A process of its own reads a whole store once, in random order, with a cache of {CACHED_SLICES} slices:")
    print(f"{'slices':>8}{'store, MB':>12}{'own, MB':>10}{'mapped, MB':>12}{'ms a slice':>12}")
    for count in (largest // 16, largest // 4, largest):
        folder = write_store(root / f"store{count}", count)
        command = [sys.executable, __file__, "--read", str(folder)]
        facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = sum(path.stat().st_size for path in folder.iterdir()) / MEGABYTE
        print(f"{count:8d}{size:12.0f}{facts['own']:10.0f}{facts['mapped']:12.0f}{facts['ms']:12.2f}")


def read_and_report(folder: Path) -> None:
    """What `memory` starts: the highest private and file-backed memory seen while reading."""
    store = EmbeddingStore.open(folder)
    order = np.random.default_rng(0).permutation(len(store)).tolist()
    own = mapped = reading = 0.0
    for first in range(0, len(order), CACHED_SLICES):
        forget(folder)  # As if the rest of the memory were taken: what was read before has to come from the disk.
        for index in order[first : first + CACHED_SLICES]:
            reading += seconds(lambda index=index: read_store(store, [index]))
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            own = max(own, int(status["RssAnon"].split()[0]) / 1e3)
            mapped = max(mapped, int(status["RssFile"].split()[0]) / 1e3)
    print(json.dumps({"own": own, "mapped": mapped, "ms": reading / len(store) * 1e3}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--largest", type=int, default=1024, help="slices of the largest store read for its memory")
    parser.add_argument("--folder", type=Path, help="where to write; a disk to measure, not a memory disk")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read is not None:
        read_and_report(arguments.read)
        return
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} cores, {platform.system()}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        compare(Path(root), arguments.slices, arguments.rounds)
        memory(Path(root), arguments.largest)


if __name__ == "__main__":
    main()
