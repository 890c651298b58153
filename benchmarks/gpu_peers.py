"""An image and boxes on a GPU: SAMRI's Predictor beside torch's SamPredictor, both there, in one run.

    python benchmarks/gpu_peers.py [--device cuda] [--rounds 15] [--small] [--folder FOLDER] [--json FILE]

- *torch*: `SamPredictor` in float32, with TensorFloat-32, and under autocast to bfloat16 and float16.
- *samri*: `Predictor` on a bundle made by `samri-export`, fp32 and fp16, with TensorFloat-32 and with CUDA graphs.

PyTorch and onnxruntime-gpu must be made for one CUDA. Candidates take turns in this process; every time is that of a
finished answer in the host's memory. Masks are compared with those of torch in float32. Weights are seeded random ones
of ViT-B's shape; `--small` takes the tests' small model, `--device cpu` the CPU: both to see that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from peer_graphs import claim, phantom_picture, spread, versions

from samri.metrics import dice
from samri_export import export_bundle
from samri_runtime import Predictor
from samri_runtime.bench import phantom_scene
from samri_runtime.machine import machine
from tests.support.sams import SMALL, VIT_B, save_checkpoint, seeded_sam

Masks = np.ndarray[Any, Any]
REFERENCE = "torch fp32"


@dataclass
class Candidate:
    """What encodes the picture, and answers boxes (B, 4) with masks (B, H, W) bool; `seconds` by what was asked."""

    encode: Callable[[], None]
    ask: Callable[[Masks], Masks]
    features: Callable[[], Masks]
    ran_on: Callable[[], str]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"image": [], "one box": [], "16 boxes": []})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=15, help="in each an image, a box and 16 boxes a candidate")
    parser.add_argument("--small", action="store_true", help="the tests' small model rather than ViT-B")
    parser.add_argument("--folder", type=Path, help="keep the graphs there, and take those that an earlier run left")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no GPU: --device cpu shows that the benchmark works")
    with contextlib.ExitStack() as cleanup:
        folder = arguments.folder or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="samri-gpu-")))
        prepare(folder, arguments.small)
        report = measure(folder, arguments.device, arguments.rounds)
    print(as_markdown(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def prepare(folder: Path, small: bool) -> None:
    """The checkpoint and its bundle, unless an earlier run left them."""
    claim(folder, small)
    if not (folder / "bundle").is_dir():
        save_checkpoint(folder / "sam.pth", seeded_sam(SMALL if small else VIT_B))
        # Random weights segment nothing, so that no gate could judge fp16.
        precisions: Any = ("fp32", "fp16")
        export_bundle(
            folder / "sam.pth", folder / "bundle", profile="sam", precisions=precisions, verify="off", force=True
        )


def measure(folder: Path, device: str, rounds: int) -> dict[str, Any]:
    picture, boxes = phantom_picture(), phantom_scene().boxes
    candidates = {**with_torch(folder, picture, device), **with_samri(folder, picture, device)}
    found: dict[str, Any] = {}
    for name, candidate in candidates.items():
        started = time.perf_counter()
        candidate.encode()
        first = time.perf_counter() - started
        candidate.ask(boxes[:1])
        masks, features = candidate.ask(boxes), candidate.features()
        if name == REFERENCE:
            expected, reference = masks, features
        found[name] = {
            "ran on": candidate.ran_on(),
            "first image": first,
            "dice": [dice(one, other) for one, other in zip(masks, expected, strict=True)],
            "embedding off": float(np.linalg.norm(features - reference) / np.linalg.norm(reference)),
        }
    for _ in range(rounds):
        for candidate in candidates.values():
            candidate.seconds["image"].append(timed(candidate.encode))
            candidate.seconds["one box"].append(timed(partial(candidate.ask, boxes[:1])))
            candidate.seconds["16 boxes"].append(timed(partial(candidate.ask, boxes)))
    for name, candidate in candidates.items():
        found[name] |= candidate.seconds
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    return {"machine": {**machine(), "gpu": gpu}, "versions": versions(), "candidates": found}


def with_torch(folder: Path, picture: Masks, device: str) -> dict[str, Candidate]:
    from samri.model import load_checkpoint

    sam = load_checkpoint(folder / "sam.pth").sam.to(device)

    def candidate(kind: torch.dtype | None, tf32: bool) -> Candidate:
        predictor = SamPredictor(sam)

        @contextlib.contextmanager
        def arithmetic() -> Any:
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = tf32
            with torch.autocast(device, kind, enabled=kind is not None):
                yield
            if device == "cuda":
                torch.cuda.synchronize()

        def encode() -> None:
            with arithmetic():
                predictor.set_image(picture)

        def ask(boxes: Masks) -> Masks:
            with arithmetic():
                asked = torch.from_numpy(boxes).to(device)
                scaled = predictor.transform.apply_boxes_torch(asked, predictor.original_size)
                masks, _, _ = predictor.predict_torch(None, None, scaled, multimask_output=False)
                return np.asarray(masks[:, 0].cpu())

        return Candidate(encode, ask, lambda: predictor.features.float().cpu().numpy(), lambda: f"torch, {device}")

    found = {REFERENCE: candidate(None, False), "torch bf16": candidate(torch.bfloat16, False)}
    if device == "cuda":
        found |= {"torch TF32": candidate(None, True), "torch fp16": candidate(torch.float16, False)}
    return found


def with_samri(folder: Path, picture: Masks, device: str) -> dict[str, Candidate]:
    def candidate(precision: Any, options: dict[str, str] | None = None) -> Candidate:
        provider: Any = device
        predictor = Predictor(folder / "bundle", provider, precision=precision, provider_options=options)
        embedding: list[Any] = [None]

        def encode() -> None:
            embedding[0] = predictor.encode(picture)

        def ran_on() -> str:
            return ", ".join(sorted(set(predictor.providers.values())))

        return Candidate(
            encode,
            lambda boxes: predictor.predict(embedding[0], boxes=boxes).masks,
            lambda: np.asarray(embedding[0].features),
            ran_on,
        )

    found = {"samri fp32": candidate("fp32"), "samri fp16": candidate("fp16")}
    if device == "cuda":
        graphs = {"enable_cuda_graph": "1"}
        found |= {
            "samri TF32": candidate("fp32", {"use_tf32": "1"}),
            "samri fp32, CUDA graphs": candidate("fp32", graphs),
            "samri fp16, CUDA graphs": candidate("fp16", graphs),
        }
    return found


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def as_markdown(report: dict[str, Any]) -> str:
    here, known = report["machine"], {name: value for name, value in report["versions"].items() if value}
    lines = [
        f"{here['gpu']}; {here['processor']}; {here['system']}; Python {here['python']}",
        ", ".join(f"{name} {value}" for name, value in known.items()),
        "",
        "| | ran on | first image (s) | image (ms) | one box (ms) | 16 boxes (ms) | Dice (worst) | embedding off |",
        "|---" * 8 + "|",
    ]
    for name, figures in report["candidates"].items():
        cells = [name, figures["ran on"], f"{figures['first image']:.2f}"]
        cells += [spread(figures[key], 1e3) for key in ("image", "one box", "16 boxes")]
        cells += [f"{np.mean(figures['dice']):.4f} ({min(figures['dice']):.4f})", f"{figures['embedding off']:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
