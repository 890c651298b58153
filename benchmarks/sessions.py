"""Threads and memory of ONNX Runtime sessions: why SAMRI opens them as it does.

    python benchmarks/sessions.py --model BUNDLE [--rounds 40] [--encoder] [--json FILE]

Threads, the variants taking turns in one process: threads that wait in a loop (ONNX Runtime's default), that sleep
(SAMRI's) or that wait in a loop for 50 microseconds only (from ONNX Runtime 1.26 on), and one thread; for one box and
for 16, with an idle machine and with a host that keeps one core busy; the processor time that a session burns in the
0.3 s after a call; and, with --encoder, the decoder right after the encoder.
Memory, with --encoder, each variant in a process of its own that encodes three images: ONNX Runtime's default; SAMRI's
(no memory patterns); without an arena; and with the arena given back after every image.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from samri.bundle import Bundle
from samri.contract import decoder_feeds, encoder_feeds
from samri.process import usable_cores
from samri_runtime.machine import current_rss, peak_rss
from samri_runtime.providers import load_onnxruntime

CORES = usable_cores()
THREADS: dict[str, tuple[int, int | None]] = {
    f"{CORES} threads that spin": (CORES, None),
    f"{CORES} threads that sleep": (CORES, 0),
    "1 thread": (1, 0),
}
if tuple(map(int, load_onnxruntime().__version__.split(".")[:2])) >= (1, 26):  # Older ones ignore the setting.
    THREADS[f"{CORES} threads that spin for 50 us"] = (CORES, 50)
"""Number of threads, and microseconds for which they wait in a loop; None for ONNX Runtime's own."""

MEMORY = ("default", "no patterns", "no arena", "arena given back")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--encoder", action="store_true", help="also what needs the encoder: minutes for ViT-B")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    parser.add_argument("--memory", choices=MEMORY, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.model)
    if arguments.memory:
        print(json.dumps(three_images(bundle, arguments.memory)))
        return
    report: dict[str, Any] = {"threads": threads(bundle, arguments.rounds, arguments.encoder)}
    print("| one thread pool | " + " | ".join(report["threads"]) + " |")
    print("|---" * (1 + len(report["threads"])) + "|")
    for name in THREADS:
        print(f"| {name} | " + " | ".join(column[name] for column in report["threads"].values()) + " |")
    if arguments.encoder:
        report["memory"] = {name: apart(arguments.model, name) for name in MEMORY}
        print("\n| memory | after opening (MB) | peak (MB) | at the end (MB) | images (s) |\n|---|---|---|---|---|")
        for name, found in report["memory"].items():
            images = ", ".join(f"{seconds:.2f}" for seconds in found["seconds"])
            sizes = " | ".join(f"{found[key] / 1e6:.0f}" for key in ("opened", "peak", "steady"))
            print(f"| {name} | {sizes} | {images} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def threads(bundle: Bundle, rounds: int, encoder: bool) -> dict[str, dict[str, str]]:
    decoders = {name: opened(bundle, "decoder", *settings) for name, settings in THREADS.items()}
    one, many = boxes(bundle, 1), boxes(bundle, 16)
    table: dict[str, dict[str, str]] = {}

    def column(title: str, measure: Callable[[str], float], times: int) -> None:
        found: dict[str, list[float]] = {name: [] for name in THREADS}
        for _ in range(times):
            for name in THREADS:
                time.sleep(0.1)  # Until the others' threads have come to rest.
                found[name].append(measure(name) * 1e3)
        low_high = {name: np.percentile(values, [10, 50, 90]) for name, values in found.items()}
        table[title] = {name: f"{p50:.1f} ({p10:.1f}-{p90:.1f})" for name, (p10, p50, p90) in low_high.items()}

    for session in decoders.values():
        session.run(None, many)
    column("one box (ms)", lambda name: timed(lambda: decoders[name].run(None, one)), rounds)
    column("16 boxes (ms)", lambda name: timed(lambda: decoders[name].run(None, many)), max(1, rounds // 4))
    column("processor time in the 0.3 s after a box (ms)", lambda name: idle(decoders[name], one), max(1, rounds // 8))
    stop = multiprocessing.Event()
    host = multiprocessing.Process(target=burn, args=(stop,))
    host.start()
    column("one box, host busy on one core (ms)", lambda name: timed(lambda: decoders[name].run(None, one)), rounds)
    stop.set()
    host.join()
    if encoder:
        encoders = {name: opened(bundle, "encoder", *settings) for name, settings in THREADS.items()}
        image = picture(bundle)

        def after(name: str) -> float:
            encoders[name].run(None, image)
            return timed(lambda: decoders[name].run(None, one))

        column("one box right after the encoder (ms)", after, 3)
    return table


def idle(session: Any, feeds: dict[str, Any]) -> float:
    session.run(None, feeds)
    used = time.process_time()
    time.sleep(0.3)
    return time.process_time() - used


def burn(stop: Any) -> None:
    while not stop.is_set():
        sum(range(20000))


def apart(model: Path, name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", str(model), "--memory", name]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def three_images(bundle: Bundle, name: str) -> dict[str, Any]:
    onnxruntime = load_onnxruntime()
    session = opened(bundle, "encoder", CORES, 0, patterns=name == "default", arena=name != "no arena")
    opening = peak_rss()
    run = onnxruntime.RunOptions()
    if name == "arena given back":
        run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    image = picture(bundle)
    seconds = [timed(lambda: session.run(None, image, run)) for _ in range(3)]
    return {"opened": opening, "peak": peak_rss(), "steady": current_rss(), "seconds": seconds}


def opened(
    bundle: Bundle, role: Any, count: int, spin: int | None, *, patterns: bool = False, arena: bool = True
) -> Any:
    onnxruntime = load_onnxruntime()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = count
    settings.enable_mem_pattern = patterns
    settings.enable_cpu_mem_arena = arena
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0" if spin == 0 else "1")
    if spin:
        settings.add_session_config_entry("session.intra_op.spin_duration_us", str(spin))
    return onnxruntime.InferenceSession(str(bundle.graph_path(role)), settings, providers=["CPUExecutionProvider"])


def boxes(bundle: Bundle, count: int) -> dict[str, Any]:
    channels, grid, _ = bundle.manifest.embedding_shape
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, bundle.manifest.image_size, (count, 2, 2)), axis=1)
    return decoder_feeds(
        0.3 * rng.standard_normal((1, channels, grid, grid), dtype=np.float32),
        corners.astype(np.float32),
        np.tile(np.array([2, 3], np.float32), (count, 1)),
    )


def picture(bundle: Bundle) -> dict[str, Any]:
    size = bundle.manifest.image_size
    return encoder_feeds(np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32))


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
