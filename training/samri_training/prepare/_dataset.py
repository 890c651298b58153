"""Making a slice dataset from a folder or from arrays: it appears complete or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri import __version__
from samri.errors import InputError, OutputError
from samri.io.optional import require
from samri.opening import read_json
from samri.ownership import refuse_foreign_content
from samri.preprocessing import profile
from samri.staging import staged_folder
from samri_training.prepare._cut import BY_LAST_AXIS, Cut, CutCase, Refused
from samri_training.prepare._labels import merged_names
from samri_training.prepare._patients import DEFAULT_SHARES, divide, keep_given, read_split_files
from samri_training.prepare._report import REPORT_FORMAT, REPORT_JSON, REPORT_TEXT, PrepareReport
from samri_training.prepare._sources import LeftOut, SourcePair, find_sources
from samri_training.prepare._workers import cut_all
from samri_training.slices import SPLITS, Split
from samri_training.slices._layout import FORMAT, FORMAT_VERSION, SIDECAR

ProgressCallback = Callable[[int, int], None]


def prepare(
    source: Path,
    output: Path,
    how: Cut = BY_LAST_AXIS,
    *,
    pattern: tuple[str, str] | None = None,
    images: str | None = None,
    masks: str | None = None,
    patient: str | None = None,
    shares: Sequence[float] | None = None,
    seed: int = 0,
    split_files: Path | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    num_workers: int = 0,
    progress: ProgressCallback = lambda done, total: None,
) -> PrepareReport:
    """Make the slice dataset `output` from what lies in `source`.

    Args:
        source: Volumes with label maps, or ready 2-D pairs.
        output: Folder that appears when all is done.
        how: How volumes become slices.
        pattern: See `find_sources`, as for `images`, `masks` and `patient`.
        images: Glob of the images to consider.
        masks: Glob of the masks to consider.
        patient: Regular expression that finds the patient in a case's name.
        shares: Shares of patients for training, validation and testing. None keeps the source's own splits, or takes
            0.8, 0.1 and 0.1 where it has none.
        seed: Random seed of the split.
        split_files: Folder with `train.txt`, `val.txt` and `test.txt`, instead of a division at random.
        skip_bad: Leave out pairs that can't be used, rather than stop.
        overwrite: Replace an earlier dataset.
        num_workers: Processes beside this one; 0 does all in this one. They are spawned, so that a script calls this
            under `if __name__ == "__main__"`.
        progress: Called with the number of pairs done and of all pairs.

    Raises:
        InputError: A pair can't be used, and `skip_bad` is false; no slices; patients that can't be divided.
        OutputError: `output` can't be written, or exists.
    """
    _check_places(source, output, overwrite)
    sources = find_sources(source, pattern=pattern, images=images, masks=masks, patient=patient)
    described = list(dict.fromkeys(pair.labels for pair in sources.pairs if pair.labels is not None))
    names = merged_names(described)
    refused = [Refused(str(mask), _no_image(mask)) for mask in sources.without_image]
    if not sources.pairs:
        raise InputError(_refusal(refused))
    split_of, in_no_split = _split(sources.pairs, shares, seed, split_files)
    pairs = [pair for pair in sources.pairs if pair.patient in split_of]
    with staged_folder(output, overwrite=overwrite, check=check_dataset) as stage:
        for split in set(split_of.values()):
            (stage / split).mkdir()
        folders = [stage / split_of[pair.patient] for pair in pairs]
        results = cut_all(pairs, folders, how, num_workers, progress)
        refused += [result for result in results if isinstance(result, Refused)]
        if refused and not skip_bad:
            raise InputError(_refusal(refused))
        cases: dict[Split, list[CutCase]] = {split: [] for split in SPLITS}
        for pair, result in zip(pairs, results, strict=True):
            if not isinstance(result, Refused):
                cases[split_of[pair.patient]] += result
        left_out = [
            *sources.left_out,
            *in_no_split,
            *(LeftOut(item.what, item.reason) for item in refused),
            *(_nothing_kept(case, how) for some in cases.values() for case in some if not case.slices),
        ]
        settings = {
            "layout": sources.layout,
            **{"pattern": pattern, "images": images, "masks": masks, "patient": patient},
            "cut": how.plane or f"axis {how.axis}",
            **{"frame": how.frame, "min_pixels": how.min_pixels},
            "division": _describe_division(sources.pairs, shares, seed, split_files),
        }
        notes = [*(note for labels in described for note in labels.notes), *_notes(cases)]
        report = PrepareReport(source, settings, cases, left_out, notes, names)
        if not report.slices:
            raise InputError(f"{source}: no slice is left: {left_out[0].why if left_out else 'nothing is marked'}")
        _write_records(stage, source, how, report)
    return report


def _check_places(source: Path, output: Path, overwrite: bool) -> None:
    """Refuse what would read its own output, or put it in the place of its input."""
    # Unlike Path.resolve, this takes a link that leads to itself.
    here, there = Path(os.path.realpath(source)), Path(os.path.realpath(output))
    if here == there or there in here.parents:
        raise OutputError(f"{output} holds the input {source}: name another output")
    if here in there.parents:
        raise OutputError(f"{output} lies inside the input {source}: name an output beside it")
    if overwrite and output.is_dir() and any(output.iterdir()):
        check_dataset(output)


def _split(
    pairs: Sequence[SourcePair], shares: Sequence[float] | None, seed: int, split_files: Path | None
) -> tuple[dict[str, Split], list[LeftOut]]:
    if split_files is not None:
        return read_split_files(split_files, pairs)
    if shares is None:
        return keep_given(pairs, DEFAULT_SHARES, seed), []
    return divide(sorted({pair.patient for pair in pairs}), shares, seed), []


def _no_image(mask: Path) -> str:
    return f"{mask} has no image of a name that belongs to it: add the image, or remove the mask"


def _refusal(refused: Sequence[Refused]) -> str:
    """All in one line; the first with its reason."""
    first, *others = refused
    if not others:
        return first.reason
    names = ", ".join(Path(item.what).name for item in others[:5]) + (" ..." if len(others) > 5 else "")
    return (
        f"{first.reason} (and {len(others)} more that can't be used: {names}; --skip-bad leaves all of them out and "
        "says why in the report)"
    )


def _nothing_kept(case: CutCase, how: Cut) -> LeftOut:
    return LeftOut(str(case.pair.mask), f"no label has {how.min_pixels} pixels in any slice of {case.case}")


def _describe_division(
    pairs: Sequence[SourcePair], shares: Sequence[float] | None, seed: int, split_files: Path | None
) -> dict[str, Any]:
    if split_files is not None:
        return {"by": "files", "files": split_files.resolve().name}
    if shares is None and all(pair.split is not None for pair in pairs):
        return {"by": "folders of the input"}
    return {"by": "chance", "shares": list(shares or DEFAULT_SHARES), "seed": seed}


def _notes(cases: dict[Split, list[CutCase]]) -> list[str]:
    empty = [split for split, some in cases.items() if some and not any(case.slices for case in some)]
    return [
        *(f"{split} has cases, but none of their slices was kept" for split in empty),
        *dict.fromkeys(note for some in cases.values() for case in some for note in case.notes),
    ]


def _write_records(folder: Path, source: Path, how: Cut, report: PrepareReport) -> None:
    for split, cases in report.cases.items():
        if cases:
            sidecar = _sidecar(source, how, cases, report.names)
            (folder / split / SIDECAR).write_text(json.dumps(sidecar, allow_nan=False), encoding="utf-8")
    text = json.dumps(report.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
    (folder / REPORT_JSON).write_text(text, encoding="utf-8")
    (folder / REPORT_TEXT).write_text(report.to_text(), encoding="utf-8")


def _sidecar(source: Path, how: Cut, cases: Sequence[CutCase], names: Mapping[int, str]) -> dict[str, Any]:
    """Metadata that slices can't hold: patients, the volumes' intensities, and where each slice came from."""
    recorded: dict[str, dict[str, Any]] = {}
    for case in cases:
        low_high = None if case.intensity_range is None else list(case.intensity_range)
        entry = recorded.setdefault(
            case.case, {"patient": case.pair.patient, "intensity_range": low_high, "sources": []}
        )
        entry["sources"].append(
            {
                "image": case.pair.image.relative_to(source).as_posix(),
                "mask": case.pair.mask.relative_to(source).as_posix(),
                "frame": case.frame if how.frame == "all" else how.frame,
                "slices": case.slices,
            }
        )
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "samri": __version__,
        "percentiles": list(profile("medsam").percentiles),
        "plane": how.plane,
        "axis": None if how.plane else how.axis,
        "labels": {str(label): name for label, name in names.items()},
        "cases": recorded,
    }


def prepare_arrays(
    output: Path,
    volumes: Mapping[Split, Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]],
    how: Cut = BY_LAST_AXIS,
    *,
    affine: npt.ArrayLike | None = None,
    overwrite: bool = False,
) -> PrepareReport:
    """Make a slice dataset from arrays, by the same path that files take.

    Args:
        output: Folder that appears when all is done.
        volumes: Split to case to (image, label map), both (H, W) or (I, J, K), of a dtype that NIfTI knows.
        how: How volumes become slices; with `Cut(axis=0)` an array (slices, H, W) is shown as it is.
        affine: (4, 4) of all of them, in mm; identity if None.
        overwrite: Replace an earlier dataset.

    Raises:
        InputError: A pair can't be used.
        OutputError: `output` can't be written, or exists.
    """
    nibabel = require("nibabel")
    matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    with tempfile.TemporaryDirectory(prefix="samri-") as source:
        for split, cases in volumes.items():
            (Path(source) / split).mkdir()
            for case, arrays in cases.items():
                for role, array in zip(("img", "seg"), arrays, strict=True):
                    stored = array.astype(np.uint8) if array.dtype == bool else array
                    image = nibabel.Nifti1Image(stored, matrix, dtype=stored.dtype)
                    nibabel.save(image, Path(source) / split / f"{case}_{role}.nii")
        return prepare(Path(source), Path(output), how, overwrite=overwrite)


def check_dataset(folder: Path) -> None:
    """Refuse to replace a folder that samri-prepare didn't make, or that holds more than its files.

    Raises:
        OutputError: It says what it holds.
    """
    report = _values(folder / REPORT_JSON)
    if report.get("format") != REPORT_FORMAT:
        raise OutputError(f"{folder} wasn't made by samri-prepare, so it won't be replaced: name another output")
    # Slices aren't listed one by one; what lies flat in the folder of a split under their naming is taken for one.
    slices = [
        f"{split}/{path.name}"
        for split in SPLITS
        for path in (folder / split).glob("*.nii.gz")
        if "_img_" in path.name or "_seg_" in path.name
    ]
    empty = [f"{split}/{SIDECAR}" for split in SPLITS]
    refuse_foreign_content(folder, [REPORT_JSON, REPORT_TEXT, *empty, *slices], "samri-prepare")


def _values(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path, error=OutputError, remedy="prepare again")
    except OutputError:
        return {}
    return values if isinstance(values, dict) else {}
