"""What `samri-run --session` does: replay a session, and write its label map."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import numpy as np

from samri.privacy import without_folders
from samri_runtime._predictor import Predictor
from samri_runtime._provenance import (
    describe_model,
    describe_scan,
    describe_versions,
    folders_of,
    voxel_volume,
)
from samri_runtime._result_files import (
    PROGRAM,
    check_output,
    check_replaceable,
    claimed,
    replaced,
    write_session_results,
)
from samri_runtime.cli import Stages, emit, say
from samri_runtime.session import Session, read_session_scan


def replay_session(
    path: Path,
    source: Path,
    output: Path,
    open_model: Callable[[], Predictor],
    *,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Replay the session in `path` on the scan `source`, write the results into `output`, and print them.

    Raises:
        SamriError: As `Session.load`; or the results can't be written, or would replace others.
    """
    started = time.perf_counter()
    stages = click.get_current_context().with_resource(Stages())
    check_output(output, source, 1, png=False, named=True)
    click.get_current_context().with_resource(claimed(output, source))
    stages.begin("reading the scan")
    scan = read_session_scan(path, source)
    if not overwrite:
        check_replaceable(output, scan, None, 1, png=False, named=True)
    stages.begin("opening the model")
    session = Session.load(
        path, scan, open_model(), on_edit=lambda number, count: stages.begin(f"replaying edit {number} of {count}")
    )
    labels = session.label_map()
    seconds = time.perf_counter() - started
    stages.begin("writing the results")
    notes = [*session.notes, *replaced(output, source, 1, png=False, named=True)]
    objects = _objects(session, labels)
    provenance = {
        "program": PROGRAM,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": describe_versions(),
        "input": describe_scan(scan),
        "slice": {"grid": list(scan.grid)},
        "model": describe_model(session.predictor),
        "provider": {"requested": session.predictor.requested_provider, "ran": session.predictor.providers},
        "session": {
            "name": path.name,
            "sha256": session.loaded_sha256,
            "edits": len(session.edits),
            "slices_encoded": session.encoded,
        },
        "candidates": [objects],
        "notes": [without_folders(note, folders_of(session.predictor, scan)) for note in notes],
        "seconds": {"replay": round(seconds, 3)},
    }
    files = write_session_results(
        output,
        scan,
        labels,
        provenance,
        names={each.label: each.name for each in session.objects},
        colors={each.label: each.color for each in session.objects},
        overwrite=overwrite,
    )
    stages.end()
    for note in notes:
        say(f"note: {note}")
    ran = ", ".join(dict.fromkeys(session.predictor.providers.values()))
    say(f"{len(session.edits)} edit(s) of {path.name} replayed in {seconds:.1f} s on {ran}")
    if as_json:
        record = json.loads(next(file for file in files if file.suffix == ".json").read_text("utf-8"))
        emit(json.dumps({**record, "files": [str(file) for file in files]}, indent=2, allow_nan=False))
    else:
        emit("\n".join([*(_line(one) for one in objects), *(str(file) for file in files)]))


def _objects(session: Session, labels: Any) -> list[dict[str, Any]]:
    counts = np.bincount(
        labels.ravel(order="K"), minlength=1 + max((each.label for each in session.objects), default=0)
    )
    voxel_mm3 = voxel_volume(session.scan)
    return [
        {
            "label": each.label,
            "name": each.name,
            "color": each.color,
            "score": float(np.mean(list(each.scores.values()))) if each.scores else None,
            "weak_slices": [at.to_json() for at in each.weak],
            "voxels": int(counts[each.label]),
            "volume_mm3": None if voxel_mm3 is None else float(counts[each.label] * voxel_mm3),
        }
        for each in session.objects
    ]


def _line(one: dict[str, Any]) -> str:
    score = "" if one["score"] is None else f"mean score {one['score']:.3f}, "
    volume = "" if one["volume_mm3"] is None else f", {one['volume_mm3']:.6g} mm3"
    return f"object {one['label']} ({one['name']}): {score}{one['voxels']} voxels{volume}"
