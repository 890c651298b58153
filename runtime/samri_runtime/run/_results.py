"""The files of one run: masks, provenance and pictures, all of them or none."""

from __future__ import annotations

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
from samri.io import Scan, draw_overlay, nibabel_version, side_by_side, write_label_table, write_mask, write_png
from samri.ownership import sealed_json
from samri.prompts import Prompt
from samri.staging import refuse_folders_in_the_way, staged_files
from samri_runtime._predictor import Predictor
from samri_runtime.run._claim import PROGRAM, check_replaceable, names_of, own_results, result_files
from samri_runtime.run._request import view_spacing, voxel_volume
from samri_runtime.run._segment import Segmentation


def check_output(folder: Path, scan: Path, candidates: int, *, png: bool = True, named: bool = False) -> None:
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
    refuse_folders_in_the_way(folder, names_of(result_files(scan, candidates, png=png, named=named)))


def write_results(
    output: Path,
    scan: Scan,
    view: SliceView,
    prompts: Sequence[Prompt],
    segmentation: Segmentation,
    provenance: Mapping[str, Any],
    *,
    names: Sequence[str] = (),
    png: bool = True,
    overwrite: bool = False,
) -> list[Path]:
    """Write `<name>_seg_.nii.gz`, `<name>_seg_.json` and, with `png`, `<name>_seg_.png` and `<name>_overlay.png`.

    Three candidates are `<name>_seg_1.nii.gz` to `<name>_seg_3.nii.gz` (and `.png`), side by side in the overlay. With
    `names`, there is `<name>_seg_dseg.tsv` too.

    Args:
        output: The folder; made if missing. What an earlier run made of the same slice is replaced or removed.
        scan: What was segmented.
        view: Which slice of it.
        prompts: What was asked, in pixels of the slice as shown.
        segmentation: The answer.
        provenance: Written to the JSON file, with the SHA-256 of all other files.
        names: Of the objects; they also stand in the masks' headers.
        png: Write the pictures too.
        overwrite: Replace other files of these names, too.

    Returns:
        The files, masks first.

    Raises:
        OutputError: They can't be written, or would replace what isn't this program's; then none is.
    """
    candidates = len(segmentation.label_maps)
    named = dict(enumerate(names, start=1))
    files = result_files(scan.path, candidates, png=png, named=bool(named))
    (record,) = files["provenance"]
    with staged_files(output, obsolete=own_results(output, scan.path), last=record) as stage:
        for name, labels in zip(files["masks"], segmentation.label_maps, strict=True):
            write_mask(stage / name, view.insert(labels, labels.dtype), scan, named)
        for name, labels in zip(files["pictures"], segmentation.label_maps, strict=False):
            write_png(stage / name, np.where(labels > 0, np.uint8(255), np.uint8(0)))
        for name in files["overlay"]:
            write_png(stage / name, _overlay(scan, view, prompts, segmentation))
        for name in files["table"]:
            write_label_table(stage / name, named)
        others = [name for name in names_of(files) if name != record]
        (stage / record).write_text(sealed_json(provenance, stage, others), "utf-8")
        if not overwrite:  # Again: a person may have put a file there meanwhile.
            check_replaceable(output, scan, view, candidates, png=png, named=bool(named))
    return [output / name for name in names_of(files)]


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
        "program": PROGRAM,
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
            "sha256": scan.sha256,
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
