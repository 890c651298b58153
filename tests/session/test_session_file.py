"""The file of a session: its schema, replaying it, what it is refused for, and kills while it is written."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest

import samri
from samri.errors import InputError, OutputError
from samri.io import Scan, write_mask
from samri_runtime import Predictor
from samri_runtime.run import main
from samri_runtime.session import SCHEMA_VERSION, SlicePosition
from tests.support.commands import call
from tests.support.files import contents
from tests.support.pages import ROOT
from tests.support.scans import save_nifti

BOX, OTHER = (11, 8, 39, 32), (20, 10, 36, 38)
SCHEMA = json.loads((ROOT / "docs" / "session.schema.json").read_text("utf-8"))


def every_edit(scan: Scan, model: Predictor, folder: Path) -> samri.Session:
    """A session with each kind of edit, and two that were undone."""
    start = np.zeros(scan.grid, np.uint8)
    start[2:8, 2:8, 2:5] = 3
    write_mask(folder / "start.nii.gz", start, scan)
    session = samri.Session(scan, model, autosave=folder / "work.json")
    session.start(folder / "start.nii.gz", {3: "atlas"})
    session.add("tube", "#12aBc0")
    session.box("tube", 6, BOX)
    session.negative_point("tube", 6, np.array([3, 3]))
    session.choose("tube", 6, 2)
    session.propagate("tube", (4, 8))
    session.point("tube", 8, (20, 20))
    session.lasso("other", 2, [(20, 10), (36, 10), (36, 38), (20, 38)])
    session.scribble("other", 2, [(2, 2), (2, 20)], inside=False)
    session.box("gone", SlicePosition(20, plane="coronal"), (5, 2, 30, 11))
    session.clear("gone", SlicePosition(20, plane="coronal"))
    session.clear("gone")
    session.remove("gone")
    session.box("late", 3, OTHER)
    session.point("late", 3, (25, 25))
    session.undo()
    session.undo()
    return session


@pytest.fixture(scope="module")
def recorded(scan: Scan, model: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of `every_edit`."""
    folder = tmp_path_factory.mktemp("recorded")
    every_edit(scan, model, folder)
    return folder


def test_a_session_replays_bit_for_bit(scan: Scan, model: Predictor, beside: Path) -> None:
    session = every_edit(scan, model, beside)
    again = samri.Session.load(beside / "work.json", model=model)
    np.testing.assert_array_equal(again.label_map(), session.label_map())
    for one, other in zip(session.objects, again.objects, strict=True):
        assert (one.name, one.label, one.color, one.scores) == (other.name, other.label, other.color, other.scores)
        assert one.logits(scan.grid).tobytes() == other.logits(scan.grid).tobytes()
    assert again.edits == session.edits and again.notes == samri.Session.load(beside / "work.json", scan, model).notes
    assert again.redo() and again.redo() and not again.redo()
    assert session.redo() and session.redo()
    np.testing.assert_array_equal(again.label_map(), session.label_map())


def test_the_command_replays_in_another_process(scan: Scan, model: Predictor, beside: Path) -> None:
    session = every_edit(scan, model, beside)
    command = [sys.executable, "-m", "samri_runtime.run", "-i", beside / scan.path.name, "-o", beside / "out"]
    command += ["--session", beside / "work.json", "--provider", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mask = nib.load(beside / "out" / "scan_seg_.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), session.label_map())
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert b'Key="4"' in mask.header.extensions[0].content
    rows = (beside / "out" / "scan_seg_dseg.tsv").read_text("utf-8").splitlines()
    assert rows[1:] == ["3\tatlas\t#009e73", "4\ttube\t#12abc0", "5\tother\t#0072b2"]
    record = json.loads((beside / "out" / "scan_seg_.json").read_text("utf-8"))
    assert record["session"]["edits"] == len(session.edits) == 13
    assert record["session"]["sha256"] == hashlib.sha256((beside / "work.json").read_bytes()).hexdigest()


def test_saved_sessions_fit_the_schema(scan: Scan, model: Predictor, beside: Path, tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    session = every_edit(scan, model, beside)
    values = json.loads((beside / "work.json").read_text("utf-8"))
    jsonschema.validate(values, SCHEMA)
    assert {edit["edit"] for edit in values["edits"]} == SCHEMA["$defs"].keys() - {"name", "position", "xy"}
    assert str(beside) not in (beside / "work.json").read_text("utf-8")
    flat = samri.read_scan(save_nifti(tmp_path / "flat.nii", np.eye(40, dtype=np.int16)[..., None], sform=np.eye(4)))
    samri.Session(flat, model).save(tmp_path / "flat.json")
    jsonschema.validate(json.loads((tmp_path / "flat.json").read_text("utf-8")), SCHEMA)
    session.save(tmp_path / "flat.json")  # A session is replaced, another file isn't.
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(OutputError, match="is no session"):
        session.save(tmp_path / "notes.json")
    assert (tmp_path / "notes.json").read_text() == "{}"


def test_a_session_of_a_frame_is_of_that_frame(model: Predictor, tmp_path: Path) -> None:
    frames = np.stack([np.full((30, 34, 6), value, np.int16) for value in (1, 2, 3)], axis=-1)
    path = save_nifti(tmp_path / "frames.nii", frames, sform=np.eye(4))
    samri.Session(path, model, frame=2, autosave=tmp_path / "work.json").add("one")
    assert (samri.Session.load(tmp_path / "work.json", model=model).scan.voxels == 3).all()
    with pytest.raises(InputError, match="frame 2, not of frame 1"):
        samri.Session.load(tmp_path / "work.json", samri.read_scan(path, 1), model)
    other = save_nifti(tmp_path / "other.nii", frames[..., 0], sform=np.eye(4))
    with pytest.raises(InputError, match="session of another scan: of frames"):
        samri.Session.load(tmp_path / "work.json", other, model)


def test_a_session_is_continued_where_it_was_left(scan: Scan, model: Predictor, beside: Path) -> None:
    every_edit(scan, model, beside)
    again = samri.Session.load(beside / "work.json", model=model, autosave=True)
    again.point("tube", 6, (22, 20))
    later = samri.Session.load(beside / "work.json", model=model)
    assert later.edits == again.edits and later.encoded == 0  # All embeddings come from the cache.
    with pytest.raises(OutputError, match=r"Session\.load"):
        samri.Session(scan, model, autosave=beside / "work.json")


def _key(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for name in path[:-1]:
            values = values[name]
        values[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_key("schema_version", value="2.0"), f"schema 2.0, and this version of SAMRI reads {SCHEMA_VERSION}"),
        (_key("schema_version", value=None), "damaged"),
        (_key("format", value="other"), "is no session"),
        (_key("scan", "sha256", value="0" * 64), "session of another scan: of scan.nii.gz"),
        (_key("scan", "frame", value=2), "frame"),
        (_key("model", value=[]), "model is missing"),
        (_key("applied", value=99), "damaged"),
        (_key("applied", value=True), "damaged"),
        (_key("direction", value={"slice": 0}), "damaged"),
        (_key("edits", 2, "edit", value="smooth"), "edit 3: there is no edit 'smooth'"),
        (_key("edits", 2, "weight", value=1), "edit 3: .* other keys"),
        (_key("edits", 2, "box", value=[1, 2, 3]), "edit 3: a box is 4 finite numbers"),
        (_key("edits", 2, "box", value=[1, 2, 3, True]), "edit 3"),
        (_key("edits", 2, "box", value=[30, 2, 3, 9]), "edit 3: .*reversed"),
        (_key("edits", 2, "at", value={"slice": -1, "axis": 2}), "edit 3"),
        (_key("edits", 2, "object", value="\x1b[2J"), "edit 3"),
        (_key("edits", 0, "file", value="../start.nii.gz"), "edit 1"),
        (_key("edits", 0, "sha256", value="1" * 64), "start.nii.gz .* put it beside"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_one_line(
    recorded: Path, model: Predictor, beside: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    shutil.copytree(recorded, beside, dirs_exist_ok=True)
    path = beside / "work.json"
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(InputError, match=message) as raised:
        samri.Session.load(path, model=model)
    assert "\n" not in str(raised.value) and str(raised.value).isprintable()
    before = contents(beside)
    result = call(main, "-i", beside / "scan.nii.gz", "-o", beside / "out", "--session", path, "--provider", "cpu")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and contents(beside) == before


def test_another_model_or_provider_is_a_note(scan: Scan, model: Predictor, beside: Path) -> None:
    samri.Session(scan, model, autosave=beside / "work.json").box("one", 6, BOX)
    values = json.loads((beside / "work.json").read_text("utf-8"))
    values["provider"]["ran"]["decoder"], values["versions"]["onnxruntime"] = "cuda", "0.1"
    (beside / "work.json").write_text(json.dumps(values))
    notes = " ".join(samri.Session.load(beside / "work.json", model=model).notes)
    assert "made on provider cuda, not cpu" in notes and "made with ONNX Runtime 0.1" in notes
    values["model"] |= {"sha256": "0" * 64, "name": "mine"}
    (beside / "work.json").write_text(json.dumps(values))
    assert "another model (mine, not samri-tiny)" in " ".join(
        samri.Session.load(beside / "work.json", model=model).notes
    )
    with pytest.raises(InputError, match="made with the model 'mine'"):
        samri.Session.load(beside / "work.json")


@pytest.mark.parametrize("option", [("--box", 1, 2, 30, 40), ("--slice", 3), ("--label", "x"), ("--multimask",)])
def test_a_session_leaves_no_room_for_prompts(beside: Path, option: tuple) -> None:
    (beside / "work.json").write_text("{}")
    result = call(main, "-i", beside / "scan.nii.gz", "-o", beside / "out", "--session", beside / "work.json", *option)
    assert result.exit_code == 2 and "--session holds all prompts" in result.stderr
    assert not (beside / "out").exists()


def test_results_of_a_session_are_replaced_by_a_session_alone(scan: Scan, model: Predictor, beside: Path) -> None:
    session = samri.Session(scan, model, autosave=beside / "work.json")
    session.box("one", 6, BOX)
    common = ("-i", beside / "scan.nii.gz", "-o", beside / "out", "--provider", "cpu")
    replay = (*common, "--session", beside / "work.json")
    prompt = (*common, "--slice", 6, "--box", *BOX)
    assert call(main, *replay).exit_code == call(main, *replay).exit_code == 0
    refused = call(main, *prompt)
    assert refused.exit_code == 1 and "is the result of a session: name another --output" in refused.stderr
    assert call(main, *prompt, "--overwrite").exit_code == 0
    refused = call(main, *replay)
    assert refused.exit_code == 1 and "is the result of prompts, not of a session" in refused.stderr


@pytest.mark.parametrize("edits", [3, 17, 40])
def test_a_killed_process_loses_at_most_the_last_edit(beside: Path, edits: int) -> None:
    code = (
        "import samri, sys, itertools\n"
        "session = samri.Session('scan.nii.gz', samri.load_model('samri-tiny', provider='cpu'), autosave='work.json')\n"
        "for number in itertools.count(1):\n"
        "    session.add(str(number))\n"
        "    print(number, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=beside, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        made = 0
        while made < edits:
            made = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        made = int((process.stdout.read().split() or [str(made)])[-1])
    with samri.Session.load(beside / "work.json") as session:
        assert made <= len(session.edits) <= made + 1
        assert [each.name for each in session.objects] == [str(number + 1) for number in range(len(session.edits))]
