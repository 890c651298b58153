"""One candidate of `encoders.py` encodes a picture a few times, in a process that imports what it needs only.

    python benchmarks/encoder_process.py CANDIDATE FOLDER IMAGES

Prints the seconds that opening and each image took, the most memory the process took and where it ran, as JSON; leaves
the embedding in the folder. Needs no PyTorch, but for the candidates that are made of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[Any], Any]
"""A picture, (H, W, 3) uint8 -> its embedding, (1, C, G, G)."""

BF16 = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}'}


def main(candidate: str, folder: Path, images: int) -> None:
    picture = np.load(folder / "picture.npy")
    started = time.perf_counter()
    encode, ran_on = CANDIDATES[candidate](folder)
    opening, seconds = time.perf_counter() - started, []
    for _ in range(images):
        started = time.perf_counter()
        features = encode(picture)
        seconds.append(time.perf_counter() - started)
    np.save(folder / f"{candidate}.npy", features)
    from samri_runtime.machine import peak_rss

    print(json.dumps({"opening": opening, "seconds": seconds, "peak": peak_rss(), "ran on": ran_on()}))


def with_plain(folder: Path) -> tuple[Encode, Callable[[], str]]:
    """`torch.onnx.export` of segment-anything's encoder, in a session of ONNX Runtime's own settings."""
    from samri.bundle import Bundle
    from samri.preprocessing import preprocess
    from samri.process import thread_limit
    from samri_runtime.providers import load_onnxruntime

    onnxruntime = load_onnxruntime()

    manifest = Bundle.open(folder / "bundle").manifest
    settings = onnxruntime.SessionOptions()
    # Its default counts the machine's cores, also those that this process may not use.
    if (threads := thread_limit()) is not None:
        settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "plain.onnx"), settings, providers=["CPUExecutionProvider"])

    def encode(picture: Any) -> Any:
        return session.run(None, {"image": preprocess(picture, manifest.profile, manifest.image_size)})[0]

    return encode, lambda: "cpu"


def with_samri(precision: Any, provider: Any = "cpu", options: dict[str, str] | None = None) -> Any:
    def opened(folder: Path) -> tuple[Encode, Callable[[], str]]:
        from samri_runtime import Predictor

        predictor = Predictor(folder / "bundle", provider, precision=precision, provider_options=options)
        return lambda picture: predictor.encode(picture).features, lambda: predictor.providers["encoder"]

    return opened


def with_torch(folder: Path) -> tuple[Encode, Callable[[], str]]:
    from segment_anything import SamPredictor

    from samri.model import load_checkpoint

    # segment-anything's own modules with the checkpoint's weights; its registry knows ViT-B and larger only.
    predictor = SamPredictor(load_checkpoint(folder / "sam.pth").sam)

    def encode(picture: Any) -> Any:
        predictor.set_image(picture)
        return predictor.get_image_embedding().numpy()

    return encode, lambda: "torch, cpu"


def with_samexporter(folder: Path) -> tuple[Encode, Callable[[], str]]:
    from samexporter.sam_onnx import SegmentAnythingONNX

    model = SegmentAnythingONNX(*(str(folder / "samexporter" / f"{name}.onnx") for name in ("encoder", "decoder")))
    return lambda picture: model.encode(picture[:, :, ::-1])["image_embedding"], lambda: "cpu"


PLAIN, OURS, TORCH, SAMEXPORTER = "plain export", "samri", "torch SamPredictor", "samexporter"
OPENVINO = {
    "samri, OpenVINO": with_samri("fp32", "openvino"),
    "samri, OpenVINO bf16": with_samri("fp32", "openvino", BF16),
    "samri int8, OpenVINO": with_samri("int8", "openvino"),
}
CANDIDATES = {
    PLAIN: with_plain,
    OURS: with_samri("fp32"),
    "samri int8": with_samri("int8"),
    TORCH: with_torch,
    SAMEXPORTER: with_samexporter,
    **OPENVINO,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
