"""What a person hands over with a scan: a session, and a file of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import samri
from samri_runtime import Predictor
from samri_runtime.run import main as samri_run
from tests.fuzz import mutate
from tests.fuzz.ground import Ground
from tests.fuzz.trial import BrokenPromiseError, Case, invoke
from tests.support.scans import OBLIQUE, brain_like, save_nifti

TABLE = (
    b"object,slice,x1,y1,x2,y2,i,j,k,label\nleft,2,3,3,17,15,,,,\nright,,,,,,12,9,2,\nright,,,,,,2,2,2,0\n",
    b"object\tx_mm\ty_mm\tz_mm\ta\n",
)


def session(ground: Ground, seeds: Path) -> Case:
    """A damaged session is replayed or refused; replayed and saved, it gives the same masks again."""
    scan = samri.read_scan(save_nifti(_made(seeds) / "scan.nii", brain_like((20, 24, 6)), sform=OBLIQUE))
    predictor = Predictor(ground.bundle, "cpu", cache=seeds / "cache")
    made = samri.Session(scan, predictor)
    made.add("other", "#ffffff")
    made.box("one", 3, (5, 6, 20, 18))
    made.point("one", 3, (4, 4))
    made.choose("one", 3, 2)
    made.lasso("two", 2, [(1, 1), (9, 2), (9, 9)])
    made.scribble("two", 2, [(1, 1), (9, 9)], inside=False)
    made.propagate("one", (2, 4))
    made.clear("one", 3)
    made.remove("two")
    made.undo()
    made.save(seeds / "work.json")
    content = (seeds / "work.json").read_bytes()

    def case(rng: np.random.Generator, scratch: Path) -> None:
        path = scratch / "work.json"
        path.write_bytes(mutate.document(rng, content))
        loaded = samri.Session.load(path, scan, predictor)
        loaded.save(scratch / "again.json")
        again = samri.Session.load(scratch / "again.json", scan, predictor)
        if again.edits != loaded.edits or not np.array_equal(again.label_map(), loaded.label_map()):
            raise BrokenPromiseError("a session that was saved again gives other masks")

    return case


def prompt_files(ground: Ground, seeds: Path) -> Case:
    """`samri-run --prompts` with a damaged file writes all results, or nothing."""
    scan = save_nifti(_made(seeds) / "scan.nii", brain_like((20, 24, 6)), sform=OBLIQUE)
    entries = [
        {"object": "left", "slice": 2, "box": [3, 3, 17, 15]},
        {"object": "right", "voxel_points": [[12, 9, 2], [2, 2, 2]], "labels": [1, 0]},
        {"object": "deep", "voxel_box": [2, 2, 2, 9, 9, 2]},
    ]
    values = json.dumps(entries).encode()

    def case(rng: np.random.Generator, scratch: Path) -> None:
        as_json = rng.random() < 0.6
        path, output = scratch / ("p.json" if as_json else "p.csv"), scratch / "out"
        path.write_bytes(mutate.document(rng, values) if as_json else mutate.data(rng, mutate.pick(rng, TABLE)))
        options = ["-c", ground.bundle, "-i", scan, "-o", output, "--provider", "cpu", "--no-png", "--prompts", path]
        done = invoke(samri_run, *options)
        if output.exists() == bool(done.exit_code):
            raise BrokenPromiseError(
                f"exit {done.exit_code}, and the folder is {'' if output.exists() else 'not '}there"
            )

    return case


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
