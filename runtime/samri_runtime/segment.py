"""From a scan and prompts to masks in the grid of the scan: what `samri.segment` and `samri-run` do."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samri.errors import InputError, PromptError
from samri.geometry import Plane, SliceView, axis_view, plane_view, single_axis, whole_view
from samri.io import Scan, read_scan
from samri.manifest import Precision
from samri.outliers import outlier_note
from samri.preprocessing import percentile_range
from samri.privacy import without_folders
from samri.prompts import Prompt, prompts_from_arrays
from samri_runtime import models
from samri_runtime._prediction import Prediction
from samri_runtime._predictor import Predictor
from samri_runtime._provenance import (
    describe_inputs,
    describe_objects,
    empty_objects,
    folders_of,
    unknown_orientation,
    voxel_volume,
)
from samri_runtime._result_files import check_output, check_replaceable, claimed, replaced, write_results
from samri_runtime.cache import EmbeddingCache
from samri_runtime.providers import Provider

Labels = npt.NDArray[Any]  # uint8, or uint16 for more than 255 objects.

DEFAULT_AXIS = 2
"""Of a volume: along it lie the slices of most scanners."""


class SliceChoiceError(InputError):
    """Slice, axis and plane together don't name one slice of a scan."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Masks of the objects 1 to B on one slice of a scan, or three candidates for each.

    Attributes:
        scan: The scan.
        view: The slice of it, which says how the slice as shown lies in the grid.
        prediction: The model's answer, each object on its own.
        slice_labels: One (H, W) label map of the slice as shown, 0 to B; three with `multimask`. Where masks overlap,
            a pixel belongs to the object with the highest logit.
        names: Names of the objects, or none.
        notes: Messages for the user, such as that a box was clipped.
        provenance: How the masks were made, in plain JSON values: versions, hashes, prompts, providers, scores.
    """

    scan: Scan
    view: SliceView
    prediction: Prediction
    slice_labels: tuple[Labels, ...]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The B prompts, in pixels of the slice as shown, after clipping."""
        return self.prediction.prompts

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(B, H, W) bool of the slice as shown, or (B, 3, H, W) with `multimask`. They may overlap."""
        return self.prediction.masks

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """(B,) float32, or (B, 3) with `multimask`: the model's own estimate of the IoU."""
        return self.prediction.scores

    @cached_property
    def label_map(self) -> Labels:
        """uint8 or uint16 array in the shape of the scan's grid: 1 to B on the slice, 0 elsewhere.

        With `multimask`, that of the first candidates; `label_maps` gives all three.
        """
        return self.view.insert(self.slice_labels[0], self.slice_labels[0].dtype)

    def label_maps(self) -> tuple[Labels, ...]:
        """`label_map` for each candidate: one, or three with `multimask`."""
        return tuple(self.view.insert(labels, labels.dtype) for labels in self.slice_labels)

    @property
    def volumes_mm3(self) -> npt.NDArray[np.float64] | None:
        """(B,) cubic millimeters of each object in `label_map`; None for a picture, whose spacing is unknown."""
        volume = voxel_volume(self.scan)
        if volume is None:
            return None
        counts = np.bincount(self.slice_labels[0].ravel(), minlength=len(self.prompts) + 1)[1:]
        return np.asarray(counts * volume, np.float64)

    def save(self, folder: str | os.PathLike[str], *, png: bool = True, overwrite: bool = False) -> list[Path]:
        """Write the files of `samri-run`: masks, provenance and, with `png`, pictures; all of them or none.

        Args:
            folder: Created if missing. Results of an earlier run on the same slice are replaced.
            png: Write the mask and the overlay as pictures too.
            overwrite: Also replace other files of these names.

        Returns:
            The files, masks first.

        Raises:
            OutputError: A file can't be written, or would replace one that `samri-run` didn't make.
            MissingDependencyError: nibabel isn't installed, or OpenCV for the pictures.
        """
        output, candidates = Path(folder), len(self.slice_labels)
        check_output(output, self.scan.path, candidates, png=png, named=bool(self.names))
        with claimed(output, self.scan.path):
            if not overwrite:
                check_replaceable(output, self.scan, self.view, candidates, png=png, named=bool(self.names))
            return self.write(output, png=png, overwrite=overwrite)

    def write(self, output: Path, *, png: bool = True, overwrite: bool = False) -> list[Path]:
        """As `save`, into a folder that the caller has checked and claimed already."""
        notes = replaced(output, self.scan.path, len(self.slice_labels), png=png, named=bool(self.names))
        provenance = {**self.provenance, "notes": [*self.provenance["notes"], *notes]}
        return write_results(
            output,
            self.scan,
            self.view,
            self.prompts,
            self.slice_labels,
            self.scores,
            provenance,
            names=self.names,
            png=png,
            overwrite=overwrite,
        )


def load_model(
    model: str | Path = models.DEFAULT,
    provider: Provider = "auto",
    *,
    precision: Precision | Literal["auto"] = "auto",
    provider_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    cache: EmbeddingCache | str | Path | None = None,
) -> Predictor:
    """Open a model.

    Args:
        model: A bundle's folder, or the name of a model that comes with SAMRI, such as `samri-tiny`.
        provider: Where to run. A named provider is used or an error is raised; `auto` takes the fastest that works.
        precision: Precision of the graphs; `auto` takes the one that suits the provider.
        provider_options: Passed to the provider unchanged.
        threads: CPU threads per operator; None for one per core.
        cache: An `EmbeddingCache`, or a folder for one, to keep embeddings on disk; None keeps none.

    Raises:
        BundleError: There is no bundle, or it is damaged or unsafe.
        ProviderError: The provider can't be used, and why.
        MissingDependencyError: ONNX Runtime isn't installed.

    Example:
        >>> import samri
        >>> model = samri.load_model("samri-tiny", provider="cpu")
        >>> model.manifest.name, model.providers["decoder"]
        ('samri-tiny', 'cpu')
    """
    return Predictor(
        model, provider, precision=precision, provider_options=provider_options, threads=threads, cache=cache
    )


def segment(
    scan: Scan | str | os.PathLike[str],
    model: Predictor | str | Path = models.DEFAULT,
    *,
    boxes: npt.ArrayLike | None = None,
    points: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
    point_labels: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
    prompts: Sequence[Prompt] | None = None,
    slice: int | None = None,
    axis: int | None = None,
    plane: Plane | None = None,
    frame: int | None = None,
    names: Sequence[str] = (),
    multimask: bool = False,
) -> Segmentation:
    """Segment objects on one slice of a scan.

    All coordinates are (x, y) in pixels of the slice as shown: x to the right along columns, y down along rows, pixel
    (0, 0) at the top left.

    Args:
        scan: From `read_scan`, or the path of a file that it reads.
        model: From `load_model`, or what that takes: a bundle's folder or a name. It is then opened for this call.
        boxes: (B, 4) or (4,) XYXY: one object each.
        points: (N, 2) for one object, or a sequence of B such arrays. Together with boxes, each box has its points.
        point_labels: Like `points` without the last axis: 1 is foreground, 0 background. None: all foreground.
        prompts: B `Prompt`s, instead of boxes and points.
        slice: Index along the axis, or in RAS order along the plane's normal. Not needed where there is one slice.
        axis: Array axis that the slice is cut across; by default the last one.
        plane: `axial`, `coronal` or `sagittal` instead of an axis; shown as radiologists do.
        frame: Frame of a 4-D file, when `scan` is a path.
        names: Names of the objects, one for each, or none.
        multimask: Three candidates per object rather than one mask.

    Raises:
        SliceChoiceError: Slice, axis and plane don't name one slice.
        PromptError: There is no prompt, or one lies outside the slice.
        InputError: The scan can't be read or has no such slice, or the names don't fit.
        SamriError: As `load_model`, `Predictor.encode` and `Predictor.predict`.

    Example:
        >>> import samri
        >>> scan = samri.read_scan("scan.nii.gz")
        >>> result = samri.segment(scan, "samri-tiny", plane="axial", slice=10, boxes=[[12, 8, 40, 30]])
        >>> result.label_map.shape == scan.grid, result.masks.shape, result.scores.shape
        (True, (1, 40, 50), (1,))
        >>> sorted(path.name for path in result.save("out", png=False))
        ['scan_seg_.json', 'scan_seg_.nii.gz']
    """
    if prompts is not None and not (boxes is None and points is None and point_labels is None):
        raise PromptError("give either prompts, or boxes and points")
    requested = prompts_from_arrays(boxes, points, point_labels) if prompts is None else list(prompts)
    if not requested:
        raise PromptError("there is no prompt: give boxes, points or prompts")
    check_names(names, len(requested))
    if not isinstance(scan, Scan):
        scan = read_scan(scan, frame)
    elif frame is not None:
        raise InputError("frame chooses what is read from a file: leave it out with a scan that is read already")
    view = choose_view(scan, slice, axis, plane)
    for prompt in requested:  # `predict` does so too, but after the encoder, which may take a minute.
        prompt.validate(view.shape)
    with contextlib.ExitStack() as stack:
        predictor = model
        if not isinstance(predictor, Predictor):
            predictor = stack.enter_context(Predictor(predictor, prompts_per_image=len(requested)))
        try:
            return _segment(predictor, scan, view, requested, tuple(names), multimask)
        except MemoryError as error:
            rows, columns = view.shape
            raise InputError(
                f"out of memory with a slice of {rows} x {columns} pixels: close other programs, crop it to the "
                "part you need, or name a smaller --model"
            ) from error


def _segment(
    predictor: Predictor,
    scan: Scan,
    view: SliceView,
    prompts: Sequence[Prompt],
    names: tuple[str, ...],
    multimask: bool,
) -> Segmentation:
    profile, image = predictor.manifest.profile, view.extract(scan.voxels)
    # MedSAM's intensities are percentiles of the whole scan, not of the slice.
    volume_range = percentile_range(scan.voxels, profile) if profile.intensity == "percentile" else None
    started = time.perf_counter()
    embedding = predictor.encode(image, intensity_range=volume_range)
    encoded_at = time.perf_counter()
    prediction = predictor.predict(embedding, prompts=prompts, multimask=multimask)
    maps = [LabelMap(view.shape, len(prompts)) for _ in range(3 if multimask else 1)]
    for logits in prediction.each_logits():
        for labels, candidate in zip(maps, logits if multimask else logits[np.newaxis], strict=True):
            labels.add(candidate)
    seconds = {"encode": encoded_at - started, "decode": time.perf_counter() - encoded_at}
    slice_labels = tuple(labels.labels for labels in maps)
    notes = [
        *scan.notes,
        *unknown_orientation(scan, view.plane),
        *prediction.notes,
        *predictor.notes,
        *embedding.notes,
        *([] if (outliers := outlier_note(image, profile)) is None else [outliers]),
        *empty_objects(slice_labels, len(prompts)),
    ]
    provenance = {
        **describe_inputs(predictor, scan, view, embedding, volume_range),
        "prompts": [prompt.to_json() for prompt in prediction.prompts],
        "candidates": describe_objects(scan, slice_labels, prediction.scores, names),
        "notes": [without_folders(note, folders_of(predictor, scan)) for note in notes],
        "seconds": {step: round(lasted, 3) for step, lasted in seconds.items()},
    }
    return Segmentation(scan, view, prediction, slice_labels, names, tuple(notes), provenance)


class LabelMap:
    """Objects drawn into one map: b + 1 where mask b has the highest logit above 0, the first in a tie; 0 elsewhere.

    Masks are added one at a time, so that a map of many objects takes no more memory than one of a few.

    Args:
        shape: (H, W).
        objects: How many will be added.

    Attributes:
        labels: (H, W) uint8, or uint16 for more than 255 objects.
    """

    def __init__(self, shape: tuple[int, int], objects: int) -> None:
        self.labels: Labels = np.zeros(shape, np.uint8 if objects <= np.iinfo(np.uint8).max else np.uint16)
        self._highest = np.zeros(shape, np.float32)
        self._added = 0

    def add(self, logits: npt.NDArray[np.float32]) -> None:
        """Draw the next object: (H, W) logits, above 0 inside."""
        self._added += 1
        higher = logits > self._highest
        np.copyto(self._highest, logits, where=higher)
        np.copyto(self.labels, self.labels.dtype.type(self._added), where=higher)


def choose_view(scan: Scan, index: int | None = None, axis: int | None = None, plane: Plane | None = None) -> SliceView:
    """The slice of a scan that `--slice`, `--axis` and `--plane` name.

    A scan of one slice needs none of them, nor does an axis or plane of one slice need an index. In a volume the axis
    is the last one by default.

    Raises:
        SliceChoiceError: They don't name one slice.
        InputError: The slice doesn't exist.
    """
    if axis is not None and plane is not None:
        raise SliceChoiceError("give --axis or --plane, not both")
    if scan.kind == "raster" or len(scan.grid) == 2:
        if (index, axis, plane) != (None, None, None):
            raise SliceChoiceError(f"{scan.path} is one slice: leave out --slice, --axis and --plane")
        return whole_view(scan.grid)
    single, place = single_axis(scan.grid), 0 if index is None else index
    try:
        if plane is not None:
            view = plane_view(scan.grid, scan.affine, plane, place)
        else:
            across = (DEFAULT_AXIS if single is None else single) if axis is None else axis
            view = axis_view(scan.grid, across, place)
    except InputError as error:
        raise InputError(f"{scan.path}: {error}") from error
    if index is None and scan.grid[view.axis or 0] > 1:
        if view.plane is not None:
            named, other = f"--plane {view.plane}", "--axis"
        else:
            named, other = f"axis {view.axis}", "--plane" if axis is not None else "--axis or --plane"
        last = scan.grid[view.axis or 0] - 1
        raise SliceChoiceError(
            f"{scan.path} is a volume of shape {scan.grid}: choose --slice 0 to {last} of {named}, or another {other}"
        )
    return view


def check_names(names: Sequence[str], objects: int) -> None:
    """One name for each object, or none at all.

    Raises:
        InputError: Another number of names, an empty one, or one twice.
    """
    if names and len(names) != objects:
        raise InputError(f"give one name (--label) per object, that is {objects}, in the order of the prompts; or none")
    if not all(name.strip() and name.isprintable() for name in names):
        raise InputError("a name (--label) must be printable, and not empty")
    if len(set(names)) < len(names):
        raise InputError("two names (--label) are the same: give each object its own")
