"""An image to its embedding: SAMRI's encoders against the plain export and the ways in which people run SAM today.

    python benchmarks/encoders.py [--rounds 3] [--images 3] [--small] [--folder FOLDER] [--openvino PYTHON] [--rest 20]

- *plain export*: `torch.onnx.export` of segment-anything's encoder, in a session of ONNX Runtime's own settings.
- *samri*, *samri int8*: `Predictor` on a bundle made by `samri-export`, on the CPU provider.
- *torch SamPredictor*, and *samexporter* where it is installed (pip install samexporter).
- With --openvino, *samri* on the OpenVINO provider in fp32 and bf16, and its int8 graph there, run by the interpreter
  of another environment (pip install 'samri[openvino]'), since ONNX Runtime's wheels install over each other.

Candidates take turns, all images of a turn in one process: opening the model and its first image together are what a
command-line user waits for. (SAMRI opens a graph when it is first needed, so neither says much alone.) Between turns
the machine rests: a virtual one hands freed memory back to its host for some seconds after a process has ended, and
the next candidate would pay for that. Embeddings are compared with the plain export's. Weights are seeded random ones
of ViT-B's shape, so that the error of int8 is that of an embedding and stands for no mask; `--small` takes the tests'
small model, to see that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from encoder_process import CANDIDATES, OPENVINO, OURS, PLAIN, SAMEXPORTER, TORCH
from peer_graphs import (
    claim,
    export_plain_encoder,
    export_samexporter,
    phantom_picture,
    samexporter_version,
    spread,
    versions,
)

from samri.process import usable_cores
from samri_export import export_bundle
from samri_runtime.machine import machine
from tests.support.sams import SMALL, VIT_B, save_checkpoint, seeded_sam


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each candidate")
    parser.add_argument("--images", type=int, default=3, help="in each process")
    parser.add_argument("--rest", type=float, default=20, help="seconds between processes; 0 with --small")
    parser.add_argument("--small", action="store_true", help="the tests' small model rather than ViT-B")
    parser.add_argument("--folder", type=Path, help="keep graphs there, or take what is there as it is")
    parser.add_argument("--openvino", type=Path, metavar="PYTHON", help="of an environment with onnxruntime-openvino")
    parser.add_argument("--only", action="append", choices=list(CANDIDATES), help="beside the plain export; repeatable")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as cleanup:
        folder = arguments.folder or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="samri-encoders-")))
        prepare(folder, arguments.small)
        candidates = {PLAIN: sys.executable, OURS: sys.executable, "samri int8": sys.executable, TORCH: sys.executable}
        if (folder / "samexporter").is_dir() and samexporter_version() is not None:
            candidates[SAMEXPORTER] = sys.executable
        if arguments.openvino:
            candidates |= dict.fromkeys(OPENVINO, str(arguments.openvino))
        if arguments.only:
            candidates = {name: python for name, python in candidates.items() if name in (PLAIN, *arguments.only)}
        report = {
            "machine": {**machine(), "cores": usable_cores()},
            "model": "small test model" if arguments.small else "ViT-B at 1024, seeded random weights",
            "versions": versions(),
            "encoders": measure(
                folder, candidates, arguments.rounds, arguments.images, rest=0 if arguments.small else arguments.rest
            ),
        }
    print(as_markdown(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def prepare(folder: Path, small: bool) -> None:
    """The checkpoint, the graphs and the picture, unless an earlier run left them."""
    claim(folder, small)
    if (folder / "plain.onnx").is_file():
        return
    sam = seeded_sam(SMALL if small else VIT_B)
    save_checkpoint(folder / "sam.pth", sam)
    # Random weights segment nothing, so that no gate could judge int8.
    export_bundle(
        folder / "sam.pth",
        folder / "bundle",
        profile="sam",
        precisions=("fp32", "int8"),
        verify="off",
        force=True,
        overwrite=True,
    )
    if not small and samexporter_version() is not None:
        export_samexporter(folder)
    np.save(folder / "picture.npy", phantom_picture())
    export_plain_encoder(sam, folder / "plain.onnx")


def measure(folder: Path, candidates: dict[str, str], rounds: int, images: int, *, rest: float) -> dict[str, Any]:
    found: dict[str, Any] = {name: {"first": [], "later": [], "peak": []} for name in candidates}
    for _ in range(rounds):
        for name, python in candidates.items():
            time.sleep(rest)
            command = [python, str(Path(__file__).with_name("encoder_process.py")), name, str(folder), str(images)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr.strip()}")
            print(f"{name}: {done.stdout.strip()}", file=sys.stderr, flush=True)  # For who stops it halfway.
            result = json.loads(done.stdout)
            found[name]["first"].append(result["opening"] + result["seconds"][0])
            found[name]["later"] += result["seconds"][1:]
            found[name]["peak"].append(result["peak"])
            found[name]["ran on"] = result["ran on"]
    expected = np.load(folder / f"{PLAIN}.npy")
    for name in candidates:
        features = np.load(folder / f"{name}.npy")
        found[name]["embedding off"] = float(np.linalg.norm(features - expected) / np.linalg.norm(expected))
    return found


def as_markdown(report: dict[str, Any]) -> str:
    here, known = report["machine"], {name: value for name, value in report["versions"].items() if value}
    lines = [
        f"{report['model']}; {here['processor']}, {here['cores']} cores; {here['system']}; Python {here['python']}",
        ", ".join(f"{name} {value}" for name, value in known.items()),
        "",
        "| | ran on | opened, first image (s) | faster | later (s) | faster | peak (GB) | embedding off |",
        "|---" * 8 + "|",
    ]
    plain = report["encoders"][PLAIN]
    for name, figures in report["encoders"].items():
        cells = [name, figures["ran on"]]
        for key in ("first", "later"):
            cells += [spread(figures[key]), times(plain[key], figures[key])]
        peak = max(figures["peak"]) / 1e9 if all(figures["peak"]) else float("nan")
        lines.append(f"| {' | '.join([*cells, f'{peak:.2f}', format(figures['embedding off'], '.1e')])} |")
    return "\n".join(lines) + "\n"


def times(plain: list[float], ours: list[float]) -> str:
    return f"{np.median(plain) / np.median(ours):.2f}" if ours else "-"


if __name__ == "__main__":
    torch.set_num_threads(usable_cores())
    main()
