"""A host for SAMRI bundles (`samri` and `sam` profiles): numpy and onnxruntime alone. Written from docs/bundle.md.

python segment.py BUNDLE IMAGE.npy X1 Y1 X2 Y2 MASK.npy     (IMAGE: (H, W) array; a box in pixels; MASK: (H, W) bool)
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report its use to its maker.
import onnxruntime as ort


def shrink_or_grow(image, size, axis):
    """One pass of the antialiased bilinear filter on uint8 along an axis, in 22-bit fixed point."""
    old, scale = image.shape[axis], image.shape[axis] / size
    lines, reach = np.moveaxis(image, axis, 0).astype(np.int64), max(scale, 1.0)
    result = np.empty((size, *lines.shape[1:]), np.uint8)
    for i in range(size):
        center = (i + 0.5) * scale
        low, high = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), old)
        weights = [max(0.0, 1 - abs((k - center + 0.5) * (1 / reach))) for k in range(low, high)]
        fixed = np.array([int(w / sum(weights) * (1 << 22) + 0.5) for w in weights])
        total = np.tensordot(fixed, lines[low:high], axes=1) + (1 << 21)
        result[i] = np.clip(total >> 22, 0, 255)
    return np.moveaxis(result, 0, axis)


def bilinear(old, new):
    """(new, old) weights of bilinear interpolation with half-pixel centers."""
    at = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
    low = np.minimum(at.astype(int), old - 1)
    matrix = np.zeros((new, old), np.float32)
    np.add.at(matrix, (np.arange(new), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(new), np.minimum(low + 1, old - 1)), at - low)
    return matrix


def segment(bundle, image, box):
    """The mask, (H, W) bool, of the box (x1, y1, x2, y2) in pixels of the image, (H, W)."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    profile, size = manifest["profile"], manifest["image_size"]
    files = {graph["role"]: graph["path"] for graph in manifest["graphs"] if graph["precision"] == "fp32"}
    encoder = ort.InferenceSession(str(bundle / files["encoder"]), providers=["CPUExecutionProvider"])
    decoder = ort.InferenceSession(str(bundle / files["decoder"]), providers=["CPUExecutionProvider"])

    (height, width), scale = image.shape, size / max(image.shape)
    filled = int(height * scale + 0.5), int(width * scale + 0.5)
    if not (profile["name"] == "sam" and image.dtype == np.uint8):
        low, high = float(image.min()), float(image.max())
        image = np.rint((image.astype(float) - low) / ((high - low) or 1) * 255).astype(np.uint8)
    for axis, target in ((1, filled[1]), (0, filled[0])):
        image = image if image.shape[axis] == target else shrink_or_grow(image, target, axis)
    model_input = np.zeros((1, 3, size, size), np.float32)
    for channel, (mean, std) in enumerate(zip(profile["mean"], profile["std"])):
        model_input[0, channel, : filled[0], : filled[1]] = (image - np.float32(mean)) / np.float32(std)
    (embedding,) = encoder.run(["image_embeddings"], {"image": model_input})

    corners = np.array(box, float).reshape(1, 2, 2) * [filled[1] / width, filled[0] / height]
    side = 4 * manifest["embedding_shape"][1]
    prompt = {
        "image_embeddings": embedding,
        "point_coords": corners.astype(np.float32),
        "point_labels": np.array([[2, 3]], np.float32),
        "mask_input": np.zeros((1, 1, side, side), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    (low_res,) = decoder.run(["low_res_masks"], prompt)
    rows = bilinear(filled[0], height) @ bilinear(side, size)[: filled[0]]
    columns = bilinear(filled[1], width) @ bilinear(side, size)[: filled[1]]
    return rows @ low_res[0, 0] @ columns.T > 0


if __name__ == "__main__":
    bundle, source, *box, target = sys.argv[1:]
    np.save(target, segment(Path(bundle), np.load(source), [float(value) for value in box]))
