"""One candidate of `peers.py` encodes a picture three times, in a process of its own that imports what it needs only.

    python benchmarks/peer_image.py CANDIDATE FOLDER

Prints the seconds of each image and the most memory the process took, as JSON; leaves the embedding in the folder.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from samri_runtime.bench._memory import peak_rss


def main(candidate: str, folder: Path) -> None:
    picture = np.load(folder / "picture.npy")
    encode = {"samri": with_samri, "torch SamPredictor": with_torch, "samexporter": with_samexporter}[candidate](folder)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        features = encode(picture)
        seconds.append(time.perf_counter() - started)
    np.save(folder / f"{candidate}.npy", features)
    print(json.dumps({"seconds": seconds, "peak": peak_rss()}))


def with_samri(folder: Path) -> Callable[[Any], Any]:
    from samri_runtime import Predictor

    predictor = Predictor(folder / "bundle", provider="cpu")
    return lambda picture: predictor.encode(picture).features


def with_torch(folder: Path) -> Callable[[Any], Any]:
    from segment_anything import SamPredictor

    from samri.model import load_checkpoint

    # segment-anything's own modules with the checkpoint's weights; its registry knows ViT-B and larger only.
    predictor = SamPredictor(load_checkpoint(folder / "sam.pth").sam)

    def encode(picture: Any) -> Any:
        predictor.set_image(picture)
        return predictor.get_image_embedding().numpy()

    return encode


def with_samexporter(folder: Path) -> Callable[[Any], Any]:
    from samexporter.sam_onnx import SegmentAnythingONNX

    model = SegmentAnythingONNX(*(str(folder / "samexporter" / f"{name}.onnx") for name in ("encoder", "decoder")))
    return lambda picture: model.encode(picture[:, :, ::-1])["image_embedding"]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
