"""Tuning keeps the fastest settings that are right, and later runs use them where nothing else was asked for."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from samri.bundle import Bundle
from samri.errors import InputError, OutputError
from samri_runtime import Predictor, _tuned
from samri_runtime._tuned import Tuned, load_tuned, save_tuned, tuned_file
from samri_runtime.bench import BenchCase, Measurements
from samri_runtime.bench._command import main
from samri_runtime.bench._measure import Agreement
from samri_runtime.bench._tune import best, candidates, settings_of

TUNED = Tuned("cpu", "fp32", 1, {}, 1.0)


def sample(case: BenchCase, encode: float, decode: float, dice: float = 1.0, informative: int = 16) -> Measurements:
    return Measurements(
        case, encodes=[encode] * 3, decodes={1: [decode] * 5}, agreement=Agreement(dice, dice, 0.0, informative)
    )


REFERENCE = sample(BenchCase("cpu"), 10, 0.1)


def test_the_fastest_whose_masks_are_right_wins() -> None:
    wrong = sample(BenchCase("cpu", "int8"), 1, 0.01, dice=0.9799)
    right = sample(BenchCase("cpu", "fp16"), 5, 0.05, dice=0.98)
    slower = sample(BenchCase("cpu", threads=1), 8, 0.08)
    broken = Measurements(BenchCase("cuda"), error="cuda can't be used: no driver")
    winner, left_out = best([REFERENCE, wrong, right, slower, broken])
    assert winner is right
    assert left_out == [
        "cpu int8: Dice 0.9799 with fp32 on the CPU is below 0.98",
        "cuda fp32: cuda can't be used: no driver",
    ]
    assert settings_of(right) == Tuned("cpu", "fp16", None, {}, 0.98)


def test_ten_boxes_count_beside_the_image() -> None:
    quick_image, quick_boxes = sample(BenchCase("cpu", threads=1), 8, 0.6), sample(BenchCase("cpu", threads=3), 9, 0.02)
    assert best([REFERENCE, quick_image, quick_boxes])[0] is quick_boxes


def test_noise_is_no_reason_to_leave_the_default() -> None:
    assert best([REFERENCE, sample(BenchCase("cpu", threads=1), 9.8, 0.1)])[0] is REFERENCE


def test_empty_masks_prove_nothing() -> None:
    with pytest.raises(InputError, match="--input"):
        best(
            [sample(BenchCase("cpu"), 10, 0.1, informative=0), sample(BenchCase("cpu", "int8"), 1, 0.1, informative=0)]
        )


def test_candidates_are_all_precisions_and_several_numbers_of_threads(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samri_runtime.bench._case.usable_cores", lambda: 8)
    monkeypatch.setattr("samri_runtime.bench._tune.usable_providers", lambda: ["cpu", "cuda"])
    assert candidates(Bundle.open(bundle).manifest) == [
        BenchCase("cpu", "fp32", None),
        BenchCase("cpu", "fp32", 4),
        BenchCase("cpu", "fp32", 1),
        BenchCase("cuda", "fp32", None),
    ]


def test_a_precision_that_nobody_compared_is_no_candidate(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    int8 = replace(manifest.graphs[0], precision="int8")
    forced = {"precision": "int8", "measured": {"mean_dice": 0.9}, "below_bar": ["mean_dice"]}
    proven = {"precision": "int8", "measured": {"mean_dice": 0.99}, "below_bar": []}
    for verification, tried in [({}, False), ({"variants": [forced]}, False), ({"variants": [proven]}, True)]:
        held = replace(manifest, graphs=(*manifest.graphs, int8), verification=verification)
        assert ("int8" in {case.precision for case in candidates(held)}) is tried


def test_settings_come_back_for_the_bundle_they_were_measured_on(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert load_tuned(opened) == (None, [])
    path = save_tuned(opened, TUNED)
    assert path == tuned_file()
    tuned, notes = load_tuned(opened)
    assert tuned == TUNED
    assert notes == [f"tuned for this machine: cpu, fp32, 1 thread (samri-bench --tune; {path})"]
    other = Bundle(opened.folder, opened.manifest, "0" * 64)
    assert load_tuned(other) == (None, [])
    save_tuned(other, Tuned("cpu", "fp32", 2, {}, 1.0))
    assert load_tuned(opened)[0] == TUNED


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99, "tuned": {}}', '{"version": 1, "tuned": []}'])
def test_a_damaged_file_is_ignored_and_kept_beside_the_new_one(bundle: Path, text: str) -> None:
    opened = Bundle.open(bundle)
    path = save_tuned(opened, TUNED)
    said: list[str] = []
    for number in (1, 2):
        path.write_text(text)
        tuned, notes = load_tuned(opened)
        assert tuned is None
        assert len(notes) == 1
        assert "were ignored" in notes[0]
        assert "is damaged" in notes[0]
        save_tuned(opened, TUNED, progress=said.append)
        assert load_tuned(opened)[0] == TUNED
        aside = path.with_name(f"tuned.damaged-{number}.json")
        assert aside.read_text() == text
        assert str(aside) in said[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"provider": "auto"},
        {"provider": []},
        {"precision": "fp8"},
        {"threads": 0},
        {"threads": "2"},
        {"threads": True},
        {"threads": 2.0},
        {"threads": 10**9},
        {"options": None},
        {"options": {"a": {}}},
        {"options": {"a": "b" * 5000}},
        {"mean_dice": 10**400},
        {"mean_dice": float("nan")},
        {"mean_dice": True},
        {"wheels": 5},
        {"wheels": [1]},
        {"wheels": None},
    ],
    ids=str,
)
def test_an_entry_that_makes_no_sense_is_ignored(bundle: Path, changes: dict[str, object]) -> None:
    opened = Bundle.open(bundle)
    path = save_tuned(opened, TUNED)
    values = json.loads(path.read_text())
    (entry,) = values["tuned"].values()
    entry.update(changes)
    path.write_text(json.dumps(values))
    tuned, notes = load_tuned(opened)
    assert tuned is None
    assert "were ignored: run samri-bench --tune again" in notes[0]


def test_an_entry_of_another_kind_or_too_deep_is_one_line_and_others_are_kept(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    path = save_tuned(opened, TUNED)
    values = json.loads(path.read_text())
    (key,) = values["tuned"]
    for entry in (5, [], "text", True):
        path.write_text(json.dumps({**values, "tuned": {key: entry, "another machine": 7}, "more": 1}))
        assert load_tuned(opened)[0] is None
        save_tuned(opened, TUNED)
        kept = json.loads(path.read_text())
        assert (kept["tuned"]["another machine"], kept["more"]) == (7, 1)
    path.write_text('{"version": 1, "tuned": {"deep": ' + "[" * 700 + "]" * 700 + "}}")
    save_tuned(opened, TUNED)
    assert load_tuned(opened)[0] == TUNED
    path.write_text('{"version": 1, "tuned": ' + "[" * 200_000)
    assert "is damaged" in load_tuned(opened)[1][0]
    path.write_text(" " * 2_000_000)
    assert "bytes" in load_tuned(opened)[1][0]


def test_control_characters_of_the_file_never_reach_the_screen(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    path = save_tuned(opened, Tuned("cpu", "fp32", 1, {"key\x1b[2J": "\x07value\u202e"}, 1.0))
    (line,) = load_tuned(opened)[1]
    assert line.isprintable()
    values = json.loads(path.read_text())
    (entry,) = values["tuned"].values()
    entry["wheels"] = ["\x1b]0;title\x07"]
    path.write_text(json.dumps(values))
    (line,) = load_tuned(opened)[1]
    assert line.isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_a_link_in_its_place_is_neither_waited_for_nor_followed(bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    path = tuned_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    assert "is a named pipe" in load_tuned(opened)[1][0]
    with pytest.raises(OutputError, match="is a named pipe"):
        save_tuned(opened, TUNED)
    path.unlink()
    (tmp_path / "theirs").write_text("theirs")
    path.symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputError, match="is a symbolic link"):
        save_tuned(opened, TUNED)
    result = CliRunner().invoke(main, ["--model", str(bundle), "--tune"])
    assert result.exit_code == 1
    assert "round" not in result.stderr
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_two_that_write_at_once_lose_nothing(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    others = [Bundle(opened.folder, opened.manifest, f"{number:064d}") for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda other: save_tuned(other, TUNED), others))
    assert all(load_tuned(other)[0] == TUNED for other in others)
    assert [path.name for path in tuned_file().parent.iterdir()] == ["tuned.json"]


def test_settings_for_another_onnx_runtime_are_ignored_and_said_so(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(bundle)
    with monkeypatch.context() as then:
        then.setattr(_tuned, "_wheels", lambda: ["onnxruntime 1.22.0"])
        save_tuned(opened, TUNED)
    tuned, notes = load_tuned(opened)
    assert tuned is None
    assert "are for onnxruntime 1.22.0, not for onnxruntime" in notes[0]
    assert Predictor.tuned(bundle).notes[: len(notes)] == notes


def test_settings_for_another_machine_are_not_taken(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(bundle)
    with monkeypatch.context() as there:
        there.setattr(_tuned, "processor", lambda: "another processor")
        save_tuned(opened, TUNED)
    assert load_tuned(opened) == (None, [])


def test_a_tuned_provider_that_no_longer_works_is_told_and_left(bundle: Path) -> None:
    save_tuned(Bundle.open(bundle), Tuned("cuda", "fp32", None, {}, 1.0))
    predictor = Predictor.tuned(bundle)
    assert predictor.providers["decoder"] == "cpu"
    assert any("cuda can't be used" in note and "were ignored" in note for note in predictor.notes)


def test_a_tuned_predictor_has_them_unless_a_setting_is_passed(bundle: Path) -> None:
    def threads(predictor: Predictor) -> int:
        settings = predictor._model.decoder.session._session.get_session_options()
        count: int = settings.intra_op_num_threads
        return count

    usual = threads(Predictor.tuned(bundle))
    save_tuned(Bundle.open(bundle), TUNED)
    tuned = Predictor.tuned(bundle)
    assert threads(tuned) == 1
    assert any(note.startswith("tuned for this machine: cpu, fp32, 1 thread") for note in tuned.notes)
    for asked in ({"provider": "cpu"}, {"precision": "fp32"}, {"threads": 2}):
        predictor = Predictor.tuned(bundle, **asked)  # type: ignore[arg-type]
        assert threads(predictor) == asked.get("threads", usual)
        assert not any("tuned" in note for note in predictor.notes)


def test_a_predictor_of_a_program_reads_no_settings_unless_told_to(bundle: Path) -> None:
    save_tuned(Bundle.open(bundle), Tuned("cuda", "fp32", None, {}, 1.0))
    assert not any("tuned" in note for note in Predictor(bundle).notes)


def test_a_folder_that_cannot_be_written_is_one_line(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAMRI_CONFIG_DIR", str(tmp_path / "file" / "folder"))
    with pytest.raises(OSError, match="SAMRI_CONFIG_DIR") as caught:
        save_tuned(Bundle.open(bundle), TUNED)
    assert "\n" not in str(caught.value)
    assert load_tuned(Bundle.open(bundle)) == (None, [])


@pytest.mark.slow
def test_tuning_for_real_leaves_settings_that_work(bundle: Path) -> None:
    quick = ["--rounds", "1", "--encodes", "1", "--decodes", "1", "--boxes", "1"]
    result = CliRunner().invoke(main, ["--model", str(bundle), "--tune", *quick])
    assert result.exit_code == 0
    assert "best here: cpu, fp32" in result.stderr
    assert str(tuned_file()) in result.stderr
    predictor = Predictor.tuned(bundle)
    assert any("tuned for this machine" in note for note in predictor.notes)
    image = np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32)
    assert predictor.predict(predictor.encode(image), boxes=[[5, 5, 40, 50]]).masks.shape == (1, 60, 50)
