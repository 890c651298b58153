"""A host for SAMRI bundles (`samri` and `sam` profiles): numpy and onnxruntime alone. Written from docs/bundle.md.

python segment.py BUNDLE IMAGE.npy X1 Y1 X2 Y2 MASK.npy     (IMAGE: (H, W) array; a box in pixels; MASK: (H, W) bool)
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report its use to its maker.
import onnxruntime as ort


def shrink_or_grow(image, size, axis):
    """One pass of the antialiased bilinear filter on uint8 along an axis, in 22-bit fixed point."""
    lines, scale, result = np.moveaxis(image, axis, 0).astype(np.int64), image.shape[axis] / size, []
    reach = max(scale, 1.0)
    for center in ((i + 0.5) * scale for i in range(size)):
        low, high = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), len(lines))
        weights = [max(0.0, 1 - abs((k - center + 0.5) * (1 / reach))) for k in range(low, high)]
        fixed = [int(w / sum(weights) * (1 << 22) + 0.5) for w in weights]
        result.append(np.clip((np.tensordot(fixed, lines[low:high], axes=1) + (1 << 21)) >> 22, 0, 255))
    return np.moveaxis(np.array(result, np.uint8), 0, axis)


def bilinear(old, new):
    """(new, old) weights of bilinear interpolation with half-pixel centers."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(old)), 0).astype(np.float32)


def opened(bundle, manifest, role):
    """A session on the graph of that role, if its files are in the bundle and are those that the manifest lists."""
    graph = next(g for g in manifest["graphs"] if (g["role"], g["precision"]) == (role, "fp32"))
    for file in [graph, *graph.get("external_data", [])]:
        path = (bundle / file["path"]).resolve()
        inside = path.is_relative_to(bundle.resolve()) and path.is_file()
        if not inside or hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
            sys.exit(f"{path} is not the file that the manifest describes: copy the bundle again")
    return ort.InferenceSession(str(bundle / graph["path"]), providers=["CPUExecutionProvider"])


def segment(bundle, image, box):
    """The mask, (H, W) bool, of the box (x1, y1, x2, y2) in pixels of the image, (H, W)."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    profile, size, side = manifest["profile"], manifest["image_size"], 4 * manifest["embedding_shape"][1]
    known = manifest["format"] == "samri-bundle" and manifest["format_version"].split(".")[0] == "1"
    if not known or profile["name"] not in ("samri", "sam"):
        sys.exit(f"{bundle} is not of format version 1, or has another profile than samri or sam")

    (height, width), scale = image.shape, size / max(image.shape)
    filled = max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
    if not (profile["name"] == "sam" and image.dtype == np.uint8):
        low, high = float(image.min()), float(image.max())
        image = np.rint((image.astype(float) - low) / ((high - low) or 1) * 255).astype(np.uint8)
    for axis in (0, 1) if height > max(100 * width, filled[0]) else (1, 0):
        image = image if image.shape[axis] == filled[axis] else shrink_or_grow(image, filled[axis], axis)
    mean, std = (np.array(profile[key], np.float32)[:, None, None] for key in ("mean", "std"))
    model_input = np.zeros((1, 3, size, size), np.float32)
    model_input[0, :, : filled[0], : filled[1]] = (image - mean) / std
    (embedding,) = opened(bundle, manifest, "encoder").run(["image_embeddings"], {"image": model_input})

    corners = np.clip(np.reshape(box, (1, 2, 2)), 0, [width, height]) * [filled[1] / width, filled[0] / height]
    if not (corners[0, 0] < corners[0, 1]).all():
        sys.exit("the box is reversed, empty or outside the image")
    prompt = {"point_coords": corners.astype(np.float32), "point_labels": np.array([[2, 3]], np.float32)}
    prompt |= {"mask_input": np.zeros((1, 1, side, side), np.float32), "has_mask_input": np.zeros(1, np.float32)}
    (low_res,) = opened(bundle, manifest, "decoder").run(["low_res_masks"], {"image_embeddings": embedding, **prompt})
    rows, columns = (bilinear(new, old) @ bilinear(side, size)[:new] for new, old in zip(filled, (height, width)))
    return rows @ low_res[0, 0] @ columns.T > 0


if __name__ == "__main__":
    bundle, source, *box, target = sys.argv[1:]
    np.save(target, segment(Path(bundle), np.load(source), [float(value) for value in box]))
