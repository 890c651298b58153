"""The files of one run: masks, provenance and pictures, all of them or none."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from samri import __version__
from samri.errors import OutputError
from samri.geometry import SliceView
from samri.hashing import file_sha256
from samri.io import Scan, draw_overlay, nibabel_version, scan_name, side_by_side, write_mask, write_png
from samri.prompts import Prompt
from samri.staging import refuse_folders_in_the_way, staged_files
from samri_runtime._predictor import Predictor
from samri_runtime.run._request import view_spacing, voxel_volume
from samri_runtime.run._segment import Segmentation

_CANDIDATES = 3


def check_output(folder: Path, scan: Path, candidates: int, *, png: bool = True) -> None:
    """Say before the work, not after it, that its results will have no place.

    Raises:
        OutputError: `folder` is a file, it or the folder in which to make it can't be written, or a folder in it is
            called like one of the results.
        InputError: `scan` has no name of an image.
        MissingDependencyError: nibabel, which writes the mask of a picture too, isn't installed.
    """
    nibabel_version()
    existing = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path())
    if not existing.is_dir():
        raise OutputError(f"cannot write {folder}: {existing} is not a folder: name another --output")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {folder}: {existing} allows no writing: name another --output")
    refuse_folders_in_the_way(folder, _names(result_files(scan, candidates, png=png)))


def earlier_results(folder: Path, scan: Path) -> list[str]:
    """Names of the files in `folder` that an earlier run made of a scan of this name, whatever its options."""
    every = dict.fromkeys([*_names(result_files(scan, 1)), *_names(result_files(scan, _CANDIDATES))])
    provenance = result_files(scan, 1)["provenance"][0]
    # Without provenance a person may have made a file of that name.
    return [name for name in every if (folder / name).is_file()] if (folder / provenance).is_file() else []


def write_results(
    output: Path,
    scan: Scan,
    view: SliceView,
    prompts: Sequence[Prompt],
    segmentation: Segmentation,
    provenance: Mapping[str, Any],
    *,
    png: bool = True,
) -> list[Path]:
    """Write `<name>_seg_.nii.gz`, `<name>_seg_.json` and, with `png`, `<name>_seg_.png` and `<name>_overlay.png`.

    Three candidates are `<name>_seg_1.nii.gz` to `<name>_seg_3.nii.gz` (and `.png`), side by side in the overlay.

    Args:
        output: The folder; made if missing. Results of an earlier run of the same name are replaced or removed.
        scan: What was segmented.
        view: Which slice of it.
        prompts: What was asked, in pixels of the slice as shown.
        segmentation: The answer.
        provenance: Written to the JSON file as it is.
        png: Write the pictures too.

    Returns:
        The files, masks first.

    Raises:
        OutputError: They can't be written; then none is.
    """
    files = result_files(scan.path, len(segmentation.label_maps), png=png)
    with staged_files(output, obsolete=earlier_results(output, scan.path)) as stage:
        for name, labels in zip(files["masks"], segmentation.label_maps, strict=True):
            write_mask(stage / name, view.insert(labels, labels.dtype), scan)
        (stage / files["provenance"][0]).write_text(json.dumps(provenance, indent=2, allow_nan=False) + "\n", "utf-8")
        for name, labels in zip(files["pictures"], segmentation.label_maps, strict=False):
            write_png(stage / name, np.where(labels > 0, np.uint8(255), np.uint8(0)))
        for name in files["overlay"]:
            write_png(stage / name, _overlay(scan, view, prompts, segmentation))
    return [output / name for name in _names(files)]


def result_files(scan: Path, candidates: int, *, png: bool = True) -> dict[str, list[str]]:
    """File names by what they hold: `masks`, `provenance`, `pictures` and `overlay`."""
    name = scan_name(scan)
    numbers = [""] if candidates == 1 else [str(number) for number in range(1, candidates + 1)]
    return {
        "masks": [f"{name}_seg_{number}.nii.gz" for number in numbers],
        "provenance": [f"{name}_seg_.json"],
        "pictures": [f"{name}_seg_{number}.png" for number in numbers if png],
        "overlay": [f"{name}_overlay.png"] if png else [],
    }


def _names(files: Mapping[str, Sequence[str]]) -> list[str]:
    return [name for names in files.values() for name in names]


def describe_run(
    predictor: Predictor,
    requested: str,
    scan: Scan,
    view: SliceView,
    prompts: Sequence[Prompt],
    segmentation: Segmentation,
    notes: Sequence[str],
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything needed to tell how a mask came about, in plain JSON values; files by name, not by path."""
    import onnxruntime

    millimeters = voxel_volume(scan)
    manifest, bundle, precision = predictor.manifest, predictor.bundle, predictor.precision
    return {
        "program": "samri-run",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "samri": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onnxruntime": onnxruntime.__version__,
            "nibabel": nibabel_version(),
        },
        "input": {
            "name": scan.path.name,
            "sha256": file_sha256(scan.path),
            "kind": scan.kind,
            "shape": list(scan.grid),
            "dtype": str(scan.voxels.dtype),
            "affine": scan.affine.tolist(),
            "frame": scan.frame if scan.frames > 1 else None,
            "frames": scan.frames,
        },
        "slice": view.describe(),
        "model": {
            "sha256": bundle.sha256,
            "name": manifest.name,
            "folder": bundle.folder.resolve().name,
            "backbone": manifest.backbone,
            "profile": manifest.profile.name,
            "precision": precision,
            "intensity_range": segmentation.intensity_range,
            "graphs": {role: graph.sha256 for role, graph in predictor.graphs.items()},
        },
        # With a cached embedding the encoder didn't run: the provider that did is among what the entry says of itself.
        "embedding": {"from_cache": segmentation.embedding.cached, "made": dict(segmentation.embedding.made)},
        "provider": {"requested": requested, "ran": predictor.providers},
        "prompts": [prompt.to_json() for prompt in prompts],
        "candidates": [
            [
                {
                    "label": label,
                    "name": names[label - 1] if names else None,
                    "score": float(score),
                    "voxels": (voxels := segmentation.voxels(candidate, label)),
                    "volume_mm3": None if millimeters is None else voxels * millimeters,
                }
                for label, score in enumerate(scores, start=1)
            ]
            for candidate, scores in enumerate(segmentation.scores)
        ],
        "notes": list(notes),
        "seconds": segmentation.seconds,
    }


def _overlay(scan: Scan, view: SliceView, prompts: Sequence[Prompt], segmentation: Segmentation) -> Any:
    image, spacing = view.extract(scan.voxels), view_spacing(scan, view)
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    points = np.concatenate([prompt.points for prompt in prompts])
    point_labels = np.concatenate([prompt.labels for prompt in prompts]).tolist()
    drawn = [
        draw_overlay(image, labels, boxes=boxes, points=points, point_labels=point_labels, spacing=spacing)
        for labels in segmentation.label_maps
    ]
    if len(drawn) == 1:
        return drawn[0]
    captions = [
        f"{number}: score {', '.join(f'{score:.2f}' for score in scores)}"
        for number, scores in enumerate(segmentation.scores, start=1)
    ]
    return side_by_side(drawn, captions)
