"""What the comparisons share: the peers' graphs, exported as their own programs do it, the picture, a table's cell."""

from __future__ import annotations

import contextlib
import importlib.metadata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.utils.onnx import SamOnnxModel

from samri_runtime.bench import phantom_scene


def claim(folder: Path, small: bool) -> None:
    """Make the folder for one model's graphs, or see that it isn't another's."""
    names = ("small", "vit_b")
    mine, other = names if small else names[::-1]
    if (folder / other).exists():
        raise SystemExit(f"{folder} holds another model's graphs: name another --folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / mine).touch()


def export_official_decoder(sam: Any, path: Path) -> None:
    """Meta's own module, exported as its script does."""
    channels, grid = sam.prompt_encoder.embed_dim, sam.prompt_encoder.image_embedding_size
    side = 4 * grid[0]
    inputs = {
        "image_embeddings": torch.randn(1, channels, *grid),
        "point_coords": torch.randint(0, sam.image_encoder.img_size, (1, 5, 2)).float(),
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, side, side),
        "has_mask_input": torch.tensor([1.0]),
        # A square, since the exported graph crops every picture to the proportions of this one.
        "orig_im_size": torch.tensor([256.0, 256.0]),
    }
    with quiet_tracer():
        torch.onnx.export(
            SamOnnxModel(sam, return_single_mask=True),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
            opset_version=17,
            dynamo=False,
        )


def export_plain_encoder(sam: Any, path: Path) -> None:
    """segment-anything's encoder as it is."""
    size = sam.image_encoder.img_size
    with quiet_tracer(), torch.no_grad():
        torch.onnx.export(
            sam.image_encoder.eval(),
            (torch.zeros(1, 3, size, size),),
            str(path),
            input_names=["image"],
            output_names=["image_embeddings"],
            opset_version=17,
            dynamo=False,
        )


def export_samexporter(folder: Path) -> None:
    from samexporter.export_decoder import run_export as export_decoder
    from samexporter.export_encoder import run_export as export_encoder

    (folder / "samexporter").mkdir(exist_ok=True)
    with quiet_tracer():
        export_decoder("vit_b", str(folder / "sam.pth"), str(folder / "samexporter/decoder.onnx"), 18, True)
        export_encoder("vit_b", str(folder / "sam.pth"), str(folder / "samexporter/encoder.onnx"), False, 18)


def samexporter_version() -> str | None:
    return versions()["samexporter"]


def versions() -> dict[str, str | None]:
    """Versions of the packages that matter; None for those that aren't installed."""
    found: dict[str, str | None] = {}
    for name in ("samri", "torch", "onnxruntime", "onnxruntime-gpu", "segment-anything", "numpy", "samexporter"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def phantom_picture() -> np.ndarray[Any, Any]:
    """The phantom of `samri-bench` as people feed SAM: (H, W, 3) uint8."""
    image = phantom_scene().image
    gray = np.rint((image - image.min()) / (image.max() - image.min()) * 255).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def spread(seconds: list[float], unit: float = 1.0) -> str:
    """Median and, in brackets, the 10th and 90th percentile, times `unit`."""
    if not seconds:
        return "-"
    middle, low, high = (float(np.percentile(seconds, percent)) * unit for percent in (50, 10, 90))
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


@contextlib.contextmanager
def quiet_tracer() -> Iterator[None]:
    """Without what the tracing exporter says of code that isn't ours: that it is traced, by the older exporter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings(
            "ignore", category=DeprecationWarning, module="torch|segment_anything|samexporter|peer_graphs"
        )
        warnings.filterwarnings("ignore", category=UserWarning, message="Exporting aten::index operator")
        yield
