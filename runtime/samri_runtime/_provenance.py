"""The record of how a mask was made, and the notes that belong to it: plain JSON values, files by name, no folders."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri import __version__
from samri.errors import MissingDependencyError
from samri.geometry import Plane, SliceView
from samri.io import Scan, nibabel_version
from samri_runtime._embedding import Embedding
from samri_runtime._predictor import Predictor
from samri_runtime._result_files import PROGRAM
from samri_runtime.providers import load_onnxruntime


def describe_inputs(
    predictor: Predictor,
    scan: Scan,
    view: SliceView,
    embedding: Embedding,
    intensity_range: tuple[float, float] | None,
) -> dict[str, Any]:
    """Versions, scan, slice, model, embedding and provider of a segmentation, in plain JSON values."""
    model = describe_model(predictor)
    graphs = model.pop("graphs")
    return {
        "program": PROGRAM,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": describe_versions(),
        "input": describe_scan(scan),
        "slice": view.describe(),
        "model": {**model, "intensity_range": intensity_range, "graphs": graphs},
        # With a cached embedding the encoder didn't run here; `made` has the provider that it ran on.
        "embedding": {"from_cache": embedding.cached, "made": dict(embedding.provenance)},
        "provider": {"requested": predictor.requested_provider, "ran": predictor.providers},
    }


def describe_scan(scan: Scan) -> dict[str, Any]:
    """Name, hash and geometry of a scan."""
    return {
        "name": scan.path.name,
        "sha256": scan.sha256,
        "kind": scan.kind,
        "shape": list(scan.grid),
        "dtype": str(scan.voxels.dtype),
        "affine": scan.affine.tolist(),
        "frame": scan.frame if scan.frames > 1 else None,
        "frames": scan.frames,
    }


def describe_model(predictor: Predictor) -> dict[str, Any]:
    """Name and hashes of a bundle, and what of it runs."""
    manifest, bundle = predictor.manifest, predictor.bundle
    return {
        "sha256": bundle.sha256,
        "name": manifest.name,
        "folder": bundle.folder.resolve().name,
        "backbone": manifest.backbone,
        "profile": manifest.profile.name,
        "precision": predictor.precision,
        "graphs": {role: graph.sha256 for role, graph in predictor.graphs.items()},
    }


def describe_objects(
    scan: Scan,
    slice_labels: Sequence[npt.NDArray[Any]],
    scores: npt.NDArray[np.float32],
    names: Sequence[str],
) -> list[list[dict[str, Any]]]:
    """Label, name, score, voxels and volume of each object, for each label map.

    Args:
        scan: The scan.
        slice_labels: One (H, W) map, or three.
        scores: (B,), or (B, 3).
        names: B names, or none.
    """
    voxel_mm3, described = voxel_volume(scan), []
    for labels, of_map in zip(slice_labels, scores.reshape(len(scores), -1).T, strict=True):
        counts = np.bincount(labels.ravel(), minlength=len(of_map) + 1).tolist()
        described.append(
            [
                {
                    "label": label,
                    "name": names[label - 1] if names else None,
                    "score": float(score),
                    "voxels": counts[label],
                    "volume_mm3": None if voxel_mm3 is None else counts[label] * voxel_mm3,
                }
                for label, score in enumerate(of_map, start=1)
            ]
        )
    return described


def voxel_volume(scan: Scan) -> float | None:
    """Cubic millimeters of a voxel; None for a picture, whose spacing is unknown, and for a singular affine."""
    if scan.nifti is None:
        return None
    volume = abs(float(np.linalg.det(scan.affine[:3, :3])))
    return volume if np.isfinite(volume) and volume > 0 else None


def unknown_orientation(scan: Scan, plane: Plane | None) -> list[str]:
    """A note on a plane of a scan that doesn't say where its axes point."""
    if plane is None or scan.oriented:
        return []
    return [f"{scan.path} doesn't say where its axes point (sform and qform codes are 0): {plane} is only a guess"]


def empty_objects(slice_labels: Sequence[npt.NDArray[Any]], objects: int) -> list[str]:
    """A note for each object without pixels in any label map."""
    present = set[int]().union(*(np.unique(labels).tolist() for labels in slice_labels))
    return [
        f"object {label} has no pixels: the model found nothing there, or other objects cover it"
        for label in range(1, objects + 1)
        if label not in present
    ]


def folders_of(predictor: Predictor, scan: Scan) -> list[Path]:
    """Folders with which paths in notes may begin."""
    folders = [scan.path.parent, predictor.bundle.folder]
    if predictor.cache is not None:
        with contextlib.suppress(RuntimeError):  # The home folder is unknown.
            folders.append(predictor.cache.folder.parent)
    return folders


def describe_versions() -> dict[str, str | None]:
    """Of SAMRI and what it runs on."""
    nibabel = None
    with contextlib.suppress(MissingDependencyError):
        nibabel = nibabel_version()
    return {
        "samri": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": load_onnxruntime().__version__,
        "nibabel": nibabel,
    }
