"""From a scan and prompts on a few of its slices to a label map of the volume, and its files."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.geometry import Plane
from samri.io import Scan, draw_overlay, montage, read_scan
from samri.privacy import without_folders
from samri.prompts import Prompt
from samri_runtime import models
from samri_runtime._predictor import Predictor
from samri_runtime._provenance import describe_inputs, folders_of, unknown_orientation, voxel_volume
from samri_runtime._result_files import check_output, check_replaceable, claimed, replaced, write_volume_results
from samri_runtime.segment import check_names, choose_view
from samri_runtime.volume._propagation import Propagation, Target, propagate
from samri_runtime.volume._rule import RULE, Rule
from samri_runtime.volume._stack import SliceStack

_SHOWN = 12  # Slices in the montage, in rows of
_COLUMNS = 4


@dataclass(frozen=True, eq=False)
class VolumeSegmentation:
    """Objects 1 to N in a volume, followed from the slices they were prompted on.

    Attributes:
        scan: The scan.
        stack: Its slices, in the order in which they are numbered.
        targets: The N objects and their prompts.
        propagation: The label map, what was found on each slice, and why each object ends where it does.
        notes: Messages for the user, such as the names of weak slices.
        provenance: How the label map was made, in plain JSON values.
    """

    scan: Scan
    stack: SliceStack
    targets: tuple[Target, ...]
    propagation: Propagation
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label_map(self) -> npt.NDArray[Any]:
        """uint8 or uint16 in the shape of the scan's grid: 1 to N, 0 elsewhere."""
        return self.propagation.labels

    @property
    def volumes_mm3(self) -> npt.NDArray[np.float64] | None:
        """(N,) cubic millimeters of each object in `label_map`; None where the spacing is unknown."""
        volume = voxel_volume(self.scan)
        return None if volume is None else np.asarray(_voxels(self.label_map, len(self.targets)) * volume, np.float64)

    def save(self, folder: str | os.PathLike[str], *, png: bool = True, overwrite: bool = False) -> list[Path]:
        """Write the label map, provenance, tables of slices and of names and, with `png`, a montage; all or none.

        Args:
            folder: Created if missing. Results of an earlier run through the same axis are replaced.
            png: Write the montage.
            overwrite: Also replace other files of these names.

        Raises:
            OutputError: A file can't be written, or would replace one that `samri-run` didn't make.
            MissingDependencyError: nibabel isn't installed, or OpenCV for the montage.
        """
        output = Path(folder)
        check_output(output, self.scan.path, 1, png=png, named=True, volume=True)
        with claimed(output, self.scan.path):
            if not overwrite:
                check_replaceable(output, self.scan, self.stack.view, 1, png=png, named=True, volume=True)
            return self.write(output, png=png, overwrite=overwrite)

    def write(self, output: Path, *, png: bool = True, overwrite: bool = False) -> list[Path]:
        """As `save`, into a folder that the caller has checked and claimed already."""
        notes = replaced(output, self.scan.path, 1, png=png, named=True, volume=True)
        return write_volume_results(
            output,
            self.scan,
            self.stack.view,
            self.label_map,
            self.slice_table(),
            self.montage,
            {**self.provenance, "notes": [*self.provenance["notes"], *notes]},
            names=[target.name for target in self.targets],
            png=png,
            overwrite=overwrite,
        )

    def slice_table(self) -> list[dict[str, Any]]:
        """A row for each object and slice: what prompted it, score, agreement with its neighbor, area, weak or not."""
        return [
            {
                "object": followed.name,
                "slice": found.number,
                "prompted_by": found.source,
                "score": round(found.score, 4),
                "agreement": "" if found.agreement is None else round(found.agreement, 4),
                "pixels": found.pixels,
                "area_mm2": round(found.pixels * self.stack.pixel_area, 3),
                "weak": int(found.weak),
            }
            for followed in self.propagation.objects
            for _, found in sorted(followed.slices.items())
        ]

    def montage(self) -> npt.NDArray[np.uint8]:
        """(height, width, 3) RGB: keyframes, ends, weak slices and some between, with outlines and captions."""
        numbers = self._shown()
        pictures, captions = [], []
        for number in numbers:
            view = self.stack.at(number)
            boxes = [target.keyframes[number].box for target in self.targets if number in target.keyframes]
            pictures.append(
                draw_overlay(
                    view.extract(self.scan.voxels),
                    view.extract(self.label_map),
                    boxes=[box for box in boxes if box is not None],
                    spacing=view.spacing(self.scan.spacing),
                )
            )
            here = [followed.slices[number] for followed in self.propagation.objects if number in followed.slices]
            score = f" score {min(found.score for found in here):.2f}" if here else ""
            captions.append(f"{number}:{score}{' WEAK' if any(found.weak for found in here) else ''}")
        return montage(pictures, captions, _COLUMNS)

    def _shown(self) -> list[int]:
        findings = [found for followed in self.propagation.objects for found in followed.slices.values()]
        every = sorted({found.number for found in findings})
        wanted = [found.number for found in findings if found.source == "prompt"]
        wanted += [
            every[0],
            every[-1],
            *(found.number for found in sorted(findings, key=lambda f: f.score) if found.weak),
        ]
        wanted += [every[round(place)] for place in np.linspace(0, len(every) - 1, _SHOWN)]
        return sorted(list(dict.fromkeys(wanted))[:_SHOWN])


def segment_volume(
    scan: Scan | str | os.PathLike[str],
    model: Predictor | str | Path = models.DEFAULT,
    *,
    keyframes: Mapping[int, Prompt] | Sequence[Mapping[int, Prompt]],
    names: Sequence[str] = (),
    axis: int | None = None,
    plane: Plane | None = None,
    slices: tuple[int, int] | None = None,
    frame: int | None = None,
    rule: Rule = RULE,
    on_slice: Callable[[int], object] | None = None,
) -> VolumeSegmentation:
    """Segment objects through a volume from prompts on one or a few slices.

    Args:
        scan: From `read_scan`, or the path of a file that it reads.
        model: From `load_model`, or what that takes; it is then opened for this call.
        keyframes: Slice number to prompt, in pixels of that slice as shown; one such mapping for each object.
        names: Names of the objects, one for each; `object 1`, `object 2` and so on without.
        axis: Array axis that slices are cut across; by default the last one.
        plane: `axial`, `coronal` or `sagittal` instead; slices are then numbered in RAS order.
        slices: First and last slice that may be segmented; None for all.
        frame: Frame of a 4-D file, when `scan` is a path.
        rule: How a slice is prompted from its neighbor, and where an object ends.
        on_slice: Called with the number of each slice that is done.

    Raises:
        PromptError: No prompt, two objects of one name, or a prompt outside the slice or the range.
        InputError: The scan can't be read, holds one slice only, or has no such slice.
        SamriError: As `load_model`, `Predictor.encode` and `Predictor.predict`.

    Example:
        >>> import samri
        >>> from samri.prompts import Prompt
        >>> result = samri.segment_volume("scan.nii.gz", keyframes={10: Prompt.of(box=[12, 8, 40, 30])}, slices=(8, 12))
        >>> result.label_map.shape == result.scan.grid, result.propagation.objects[0].ends[1]
        (True, 'the range ends here')
    """
    each = [keyframes] if isinstance(keyframes, Mapping) else list(keyframes)
    check_names(names, len(each))
    targets = tuple(
        Target(name, dict(prompts))
        for name, prompts in zip(names or [f"object {n}" for n in range(1, len(each) + 1)], each, strict=True)
    )
    if not isinstance(scan, Scan):
        scan = read_scan(scan, frame)
    elif frame is not None:
        raise InputError("frame chooses what is read from a file: leave it out with a scan that is read already")
    first = min((number for target in targets for number in target.keyframes), default=0)
    stack = SliceStack(scan, choose_view(scan, first, axis, plane))
    with contextlib.ExitStack() as closing:
        predictor = model if isinstance(model, Predictor) else closing.enter_context(Predictor(model))
        started = time.perf_counter()
        propagation = propagate(predictor, stack, targets, slices=slices, rule=rule, on_slice=on_slice)
        seconds = time.perf_counter() - started
        notes = [
            *scan.notes,
            *unknown_orientation(scan, stack.view.plane),
            *predictor.notes,
            *propagation.notes,
            *(_weak_slices(followed.name, followed.slices.values()) for followed in propagation.objects),
        ]
        notes = [note for note in notes if note]
        provenance = {
            **describe_inputs(predictor, scan, stack.view, propagation.embedding, propagation.intensity_range),
            "volume": _describe(propagation, targets, stack, slices, rule),
            "notes": [without_folders(note, folders_of(predictor, scan)) for note in notes],
            "seconds": {"propagate": round(seconds, 3)},
        }
    return VolumeSegmentation(scan, stack, targets, propagation, tuple(notes), provenance)


def _describe(
    propagation: Propagation,
    targets: Sequence[Target],
    stack: SliceStack,
    slices: tuple[int, int] | None,
    rule: Rule,
) -> dict[str, Any]:
    voxel_mm3, counts = voxel_volume(stack.scan), _voxels(propagation.labels, len(targets))
    return {
        "range": None if slices is None else list(slices),
        "rule": rule.to_json(),
        "slices_encoded": propagation.encoded,
        "objects": [
            {
                "label": label,
                "name": target.name,
                "keyframes": [
                    {"slice": number, **prompt.to_json()} for number, prompt in sorted(target.keyframes.items())
                ],
                "first_slice": min(followed.slices),
                "last_slice": max(followed.slices),
                "ends": {"first": followed.ends.get(-1), "last": followed.ends.get(1)},
                "weak_slices": sorted(found.number for found in followed.slices.values() if found.weak),
                "voxels": int(counts[label - 1]),
                "volume_mm3": None if voxel_mm3 is None else float(counts[label - 1] * voxel_mm3),
            }
            for label, (target, followed) in enumerate(zip(targets, propagation.objects, strict=True), start=1)
        ],
    }


def _voxels(labels: npt.NDArray[Any], objects: int) -> npt.NDArray[np.int64]:
    return np.bincount(labels.ravel(order="K"), minlength=objects + 1)[1 : objects + 1]


def _weak_slices(name: str, findings: Any) -> str:
    weak = sorted(found.number for found in findings if found.weak)
    if not weak:
        return ""
    return f"{name}: look at slice{'s' if len(weak) > 1 else ''} {', '.join(map(str, weak))}: low score or agreement"
