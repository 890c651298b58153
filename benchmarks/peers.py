"""A box to a mask: SAMRI against the ways in which people run SAM today, in one run. `encoders.py` does images.

    python benchmarks/peers.py [--rounds 15] [--small] [--folder FOLDER]

- *samri*: `Predictor` on a bundle made by `samri-export`. Each time *on a new image*, it is another embedding for it,
  whose own share of the decoder is computed first; *asked once* is `Predictor(prompts_per_image=1)`, which spares that.
- *Meta's ONNX decoder*: `segment_anything.utils.onnx.SamOnnxModel` with one mask, exported plainly, in a session of
  ONNX Runtime's own settings, with the prompt handling of Meta's notebook. It takes one prompt per call, and answers a
  box alone with the best of the three candidates, so it's compared with that.
- *torch SamPredictor*: `predict`, and `predict_torch` for 16 boxes in one call.
- *samexporter*: graphs and class of the package of that name, where it is installed (pip install samexporter).

All candidates answer on the same embedding and take turns in this process, with a pause before each that lets the
others' threads come to rest. Masks are compared with those of torch in the same run. Weights are seeded random ones of
ViT-B's shape; `--small` takes the tests' small model, to see that it works (samexporter's class is made for images of
1024 and is left out).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.utils.transforms import ResizeLongestSide

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from peer_graphs import (
    claim,
    export_official_decoder,
    export_samexporter,
    phantom_picture,
    samexporter_version,
    spread,
    versions,
)

from samri.contract import sam_decoder_feeds
from samri.process import usable_cores
from samri_export import export_bundle
from samri_runtime import Embedding, Predictor
from samri_runtime.bench import phantom_scene
from samri_runtime.machine import machine
from samri_runtime.providers import load_onnxruntime
from tests.support.sams import SMALL, VIT_B, save_checkpoint, seeded_sam

onnxruntime = load_onnxruntime()  # With its telemetry off.

Masks = np.ndarray[Any, Any]
OURS, META, TORCH, SAMEXPORTER = "samri", "Meta's ONNX decoder", "torch SamPredictor", "samexporter"
OURS_NEW, OURS_ONCE = "samri, on a new image", "samri, on a new image, asked once"
PAUSE = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of prompts")
    parser.add_argument("--small", action="store_true", help="the tests' small model rather than ViT-B")
    parser.add_argument("--folder", type=Path, help="keep the graphs there, and take those that an earlier run left")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    parser.add_argument("--markdown", type=Path, help="write the tables there too")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as cleanup:
        folder = arguments.folder or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="samri-peers-")))
        report = measure(folder, arguments.rounds, arguments.small)
    text = as_markdown(report)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")


def measure(folder: Path, rounds: int, small: bool) -> dict[str, Any]:
    sam = seeded_sam(SMALL if small else VIT_B)
    peers = [OURS, OURS_NEW, OURS_ONCE, META, TORCH]
    if not small and samexporter_version() is not None:
        peers.append(SAMEXPORTER)
    claim(folder, small)
    if SAMEXPORTER in peers and not (folder / "samexporter").is_dir():
        (folder / "official.onnx").unlink(missing_ok=True)
    if not (folder / "official.onnx").is_file():
        save_checkpoint(folder / "sam.pth", sam)
        export_bundle(folder / "sam.pth", folder / "bundle", profile="sam", verify="off", overwrite=True)
        if SAMEXPORTER in peers:
            export_samexporter(folder)
        export_official_decoder(sam, folder / "official.onnx")
    scene = phantom_scene()
    np.save(folder / "picture.npy", phantom_picture())
    return {
        "machine": {**machine(), "cores": usable_cores()},
        "model": "small test model" if small else "ViT-B at 1024, seeded random weights",
        "versions": versions(),
        "prompts": prompts(sam, folder, scene.boxes, peers, rounds),
    }


def prompts(sam: Any, folder: Path, boxes: Masks, peers: list[str], rounds: int) -> dict[str, Any]:
    """Seconds of one box and of 16, and the agreement of the masks, by candidate."""
    picture = np.load(folder / "picture.npy")
    torch_predictor = SamPredictor(sam)
    torch_predictor.set_image(picture)
    features = torch_predictor.get_image_embedding().numpy()
    candidates = {
        OURS: ours(folder, features, picture.shape[:2]),
        OURS_NEW: ours(folder, features, picture.shape[:2], new=True),
        OURS_ONCE: ours(folder, features, picture.shape[:2], new=True, prompts_per_image=1),
        META: official(folder, features, picture.shape[:2], sam.image_encoder.img_size),
        TORCH: with_torch(torch_predictor),
    }
    if SAMEXPORTER in peers:
        candidates[SAMEXPORTER] = with_samexporter(folder, features, picture.shape[:2])
    expected = dict.fromkeys(candidates, candidates[TORCH](boxes))
    expected[META] = best_of_three(torch_predictor, boxes)
    found: dict[str, Any] = {}
    for name, ask in candidates.items():
        ask(boxes[:1])
        logits = ask(boxes)
        found[name] = {**agreement(logits, expected[name]), "one box": [], "16 boxes": []}
    for _ in range(rounds):
        for name, ask in candidates.items():
            for key, asked in (("one box", boxes[:1]), ("16 boxes", boxes)):
                time.sleep(PAUSE)
                started = time.perf_counter()
                masks = ask(asked) > 0
                found[name][key].append(time.perf_counter() - started)
                assert masks.shape == (len(asked), *picture.shape[:2])
    return found


Ask = Callable[[Masks], Masks]
"""Boxes (B, 4) in pixels of the picture -> logits (B, H, W) at its size."""


def ours(
    folder: Path, features: Masks, shape: tuple[int, int], *, new: bool = False, prompts_per_image: int | None = None
) -> Ask:
    predictor = Predictor(folder / "bundle", provider="cpu", prompts_per_image=prompts_per_image)
    embedding = Embedding(features, shape, predictor.manifest.embedding_id("fp32"))

    def ask(boxes: Masks) -> Masks:
        of_image = dataclasses.replace(embedding, features=features.copy()) if new else embedding
        return predictor.predict(of_image, boxes=boxes).logits()

    return ask


def official(folder: Path, features: Masks, shape: tuple[int, int], size: int) -> Ask:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = usable_cores()  # Its default, but for a process that may use some cores only.
    session = onnxruntime.InferenceSession(str(folder / "official.onnx"), settings, providers=["CPUExecutionProvider"])
    transform = ResizeLongestSide(size)

    def ask(boxes: Masks) -> Masks:
        answers = []
        for box in boxes:
            coords = transform.apply_coords(box.reshape(1, 2, 2), shape).astype(np.float32)
            feeds = sam_decoder_feeds(features, coords, np.array([[2, 3]], np.float32), shape)
            answers.append(session.run(["masks"], feeds)[0][0, 0])
        return np.stack(answers)

    return ask


def with_torch(predictor: SamPredictor) -> Ask:
    def ask(boxes: Masks) -> Masks:
        if len(boxes) == 1:
            return np.asarray(predictor.predict(box=boxes[0], multimask_output=False, return_logits=True)[0])
        scaled = predictor.transform.apply_boxes_torch(torch.from_numpy(boxes), predictor.original_size)
        logits, _, _ = predictor.predict_torch(None, None, scaled, multimask_output=False, return_logits=True)
        return np.asarray(logits[:, 0].numpy())

    return ask


def best_of_three(predictor: SamPredictor, boxes: Masks) -> Masks:
    """Logits of the candidate with the highest score, for each box."""
    answers = [predictor.predict(box=box, multimask_output=True, return_logits=True) for box in boxes]
    return np.stack([logits[scores.argmax()] for logits, scores, _ in answers])


def with_samexporter(folder: Path, features: Masks, shape: tuple[int, int]) -> Ask:
    from samexporter.sam_onnx import SegmentAnythingONNX

    # A small graph stands in for its encoder, which isn't run here and would only take memory.
    model = SegmentAnythingONNX(str(folder / "bundle/decoder.onnx"), str(folder / "samexporter/decoder.onnx"))
    resized = model.get_preprocess_shape(*shape, model.target_size)
    embedding = {"image_embedding": features, "original_size": shape, "resized_size": resized}

    def ask(boxes: Masks) -> Masks:
        marks = [[{"type": "rectangle", "data": box.tolist()}] for box in boxes]
        return np.stack([model.predict_masks(embedding, mark)[0][0] for mark in marks])

    return ask


def agreement(logits: Masks, expected: Masks) -> dict[str, float]:
    """With torch: mean Dice, and the largest difference of logits at the picture's size over their range."""
    ours, theirs = logits > 0, expected > 0
    sizes = ours.sum((1, 2)) + theirs.sum((1, 2))
    dice = np.where(sizes == 0, 1.0, 2 * (ours & theirs).sum((1, 2)) / np.maximum(sizes, 1))
    return {"dice": float(dice.mean()), "logits off": float(np.abs(logits - expected).max() / np.ptp(expected))}


def as_markdown(report: dict[str, Any]) -> str:
    here, known = report["machine"], {name: value for name, value in report["versions"].items() if value}
    lines = [
        f"{report['model']}; {here['processor']}, {here['cores']} cores; {here['system']}; Python {here['python']}",
        ", ".join(f"{name} {value}" for name, value in known.items()),
        "",
        "| | one box (ms) | times samri | 16 boxes (ms) | times samri | Dice with torch | logits off |",
        "|---|---|---|---|---|---|---|",
    ]
    found = report["prompts"]
    for name, figures in found.items():
        cells = [name]
        for key in ("one box", "16 boxes"):
            ratio = np.median(figures[key]) / np.median(found[OURS][key])
            cells += [spread(figures[key], 1e3), f"{ratio:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {figures['dice']:.4f} | {figures['logits off']:.1e} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
