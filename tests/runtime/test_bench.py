"""`samri-bench` on the small bundle: what it measures is there, and what it compares is compared."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.spatial.distance import dice as dice_distance

from samri.bundle import Bundle
from samri.errors import InputError, MissingDependencyError, ProviderError
from samri_runtime.bench import BenchCase, BenchReport, Measurements, Repeats, measure, phantom_scene, scan_scene
from samri_runtime.bench import _case as bench_case
from samri_runtime.bench import _command as bench_command
from samri_runtime.bench import _measure as bench_measure
from samri_runtime.bench._command import main
from samri_runtime.bench._measure import Agreement, Masks
from samri_runtime.bench._report import environment

EFFORT = Repeats(rounds=2, encodes=2, decodes=3, batches=(1, 5))
STATIC = BenchCase("cpu", threads=1, static_shapes=True)
ABSENT = BenchCase("cuda")


@pytest.fixture(scope="module")
def samples(bundle: Path) -> list[Measurements]:
    return measure(bundle, [BenchCase("cpu"), STATIC, ABSENT], phantom_scene(), EFFORT)


@pytest.fixture(scope="module")
def report(bundle: Path, samples: list[Measurements]) -> BenchReport:
    return BenchReport(environment(Bundle.open(bundle)), "phantom", samples, EFFORT.batches, "samri-bench")


@pytest.mark.slow
def test_the_reference_comes_first_and_each_case_once(samples: list[Measurements]) -> None:
    assert [sample.case for sample in samples] == [BenchCase("cpu"), STATIC, ABSENT]


@pytest.mark.slow
def test_every_round_is_counted(samples: list[Measurements]) -> None:
    for sample in samples[:2]:
        assert (len(sample.cold), len(sample.first_encodes), len(sample.encodes)) == (2, 2, 4)
        assert {batch: len(times) for batch, times in sample.decodes.items()} == {1: 6, 5: 6}
        assert sample.ran == {"encoder": "cpu", "decoder": "cpu"}
        assert min(*sample.cold, *sample.encodes, *sample.decodes[1]) > 0
        # Python, numpy and ONNX Runtime alone take more than this; the machine has less than that.
        assert all(3e7 < peak < 3e10 for peak in sample.peak)
        for cold, first, peak, steady in zip(
            sample.cold, sample.first_encodes, sample.peak, sample.steady, strict=True
        ):
            assert cold > first
            assert peak >= steady


@pytest.mark.slow
def test_masks_are_compared_with_fp32_on_the_cpu(samples: list[Measurements]) -> None:
    for sample in samples[:2]:
        assert sample.agreement is not None
        assert sample.agreement.informative >= 8
        assert sample.agreement.worst_dice > 0.999
        assert sample.agreement.logits < 1e-4


@pytest.mark.slow
def test_a_provider_that_cannot_run_is_told_and_the_others_are_measured(samples: list[Measurements]) -> None:
    failed = samples[2]
    assert failed.error is not None
    assert failed.error.startswith("cuda can't be used: ")
    assert "\n" not in failed.error
    assert (failed.cold, failed.agreement) == ([], None)


def test_the_agreement_is_dice_over_the_boxes() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((3, 9, 7)) < 0.4, rng.random((3, 9, 7)) < 0.6
    ours[2] = theirs[2] = False
    logits = rng.normal(size=(3, 4, 4)).astype(np.float32)
    found = Masks(ours, logits + np.float32(0.25)).agreement(Masks(theirs, logits))
    dice = [1 - dice_distance(theirs[i].ravel(), ours[i].ravel()) for i in (0, 1)]
    assert found.mean_dice == pytest.approx((dice[0] + dice[1] + 1) / 3)
    assert found.worst_dice == pytest.approx(min(dice))
    assert found.logits == pytest.approx(0.25 / np.ptp(logits), rel=1e-5)
    assert found.informative == 2


def test_a_bundle_that_cannot_run_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=r"can't be measured: no bundle at ") as caught:
        measure(tmp_path / "none", [], phantom_scene(), EFFORT)
    assert "\n" not in str(caught.value)


def test_a_process_that_dies_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_measure, "_WORKER", "samri_runtime.bench.no_such_module")
    with pytest.raises(ProviderError, match=r"its process ended with exit code 1: .*no_such_module"):
        measure(bundle, [], phantom_scene(), EFFORT)


def test_auto_is_no_case() -> None:
    with pytest.raises(ProviderError, match="auto can't be measured"):
        BenchCase("auto")


@pytest.mark.slow
def test_csv_and_json_hold_every_figure(report: BenchReport) -> None:
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [row["provider"] for row in rows] == ["cpu", "cpu static", "cuda"]
    for row, entry, sample in zip(rows[:2], written["rows"], report.samples, strict=False):
        raw = entry["raw"]
        assert float(row["encode_s"]) == pytest.approx(np.median(raw["encode_s"])) == np.median(sample.encodes)
        assert float(row["boxes_5_p90_ms"]) == pytest.approx(1e3 * np.percentile(raw["boxes_s"]["5"], 90))
        assert float(row["peak_mb"]) == max(sample.peak) / 1e6
    assert rows[2]["encode_s"] == ""
    assert rows[2]["error"] == report.samples[2].error
    assert written["environment"]["wheels"]
    assert str(Path.home()) not in json.dumps(written["environment"])


@pytest.mark.slow
def test_the_markdown_table_has_a_row_for_each_case(report: BenchReport) -> None:
    text = report.to_markdown()
    for case, said in (("cpu", ""), ("cpu static", ""), ("cuda", "failed")):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {case} | ")]
        assert said in row
    assert "cuda fp32: cuda can't be used" in text
    for line in report.to_text().splitlines():
        assert line == line.rstrip()


@pytest.mark.slow
def test_a_folder_gets_all_files_or_none(report: BenchReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = report.write(tmp_path / "bench")
    assert [file.name for file in files] == ["bench.csv", "bench.json", "bench.md", "bench.png"]
    assert all(file.is_file() for file in files)
    with Image.open(files[-1]) as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"samri\[bench\]"):
        report.write(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert [file.name for file in report.write(tmp_path / "other", png=False)] == [
        "bench.csv",
        "bench.json",
        "bench.md",
    ]


def test_the_phantom_has_a_bright_structure_in_each_box() -> None:
    scene = phantom_scene()
    assert scene.boxes.shape == (16, 4)
    for x1, y1, x2, y2 in scene.boxes:
        inside = scene.image[round((y1 + y2) / 2), round((x1 + x2) / 2)]
        assert inside > scene.image[round(y1), round(x1)] + 30
        assert 0 <= x1 < x2 <= 256
        assert 0 <= y1 < y2 <= 256


def test_a_scan_of_ones_own_can_be_asked(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(size=(20, 30, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii.gz")
    assert np.array_equal(scan_scene(tmp_path / "scan.nii.gz").image, volume[:, :, 3])
    scene = scan_scene(tmp_path / "scan.nii.gz", 5)
    assert np.array_equal(scene.image, volume[:, :, 5])
    assert scene.boxes[:, [0, 1]].min() >= 0
    assert scene.boxes[:, 2].max() <= 30
    assert scene.boxes[:, 3].max() <= 20
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="is one slice"):
        scan_scene(tmp_path / "one.png", 3)


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


QUICK = ("--rounds", "1", "--encodes", "1", "--decodes", "1", "--boxes", "1")


@pytest.mark.slow
def test_the_command_prints_results_on_stdout_and_the_rest_on_stderr(bundle: Path, tmp_path: Path) -> None:
    code, out, err = run("--model", bundle, "--provider", "cpu", *QUICK, "--json", "--output", tmp_path, "--no-png")
    assert code == 0
    printed = json.loads(out)
    assert printed["rows"][0]["mean_dice"] == 1
    assert json.loads((tmp_path / "bench.json").read_text())["rows"] == printed["rows"]
    assert all(line.startswith("samri-bench: ") for line in err.splitlines())


@pytest.mark.slow
def test_a_provider_asked_for_by_name_must_run(bundle: Path) -> None:
    code, out, err = run("--model", bundle, "--provider", "cuda", *QUICK)
    assert code == 1
    assert "failed" in out
    assert "samri-bench: error: cuda fp32: cuda can't be used: " in err


@pytest.mark.parametrize("works", [True, False])
def test_tensorrt_is_measured_only_where_it_works(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_case, "usable_providers", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(bench_case, "_works", lambda provider: works)
    measured = {case.provider for case in bench_case.accelerator_cases(["fp32"])}
    assert measured == ({"cuda", "tensorrt"} if works else {"cuda"})


def test_a_machine_without_accelerators_is_told_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_command, "accelerator_cases", lambda precisions: [])
    assert run("--model", bundle, "--gpu") == (
        1,
        "",
        "samri-bench: looking for providers that work here\n"
        "samri-bench: error: no accelerator works here: run samri-doctor to see why\n",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gpu", "--provider", "cpu"), "leave out --provider"),
        (("--tune", "--threads", "2"), "leave out --provider"),
        (("--tune", "--gpu"), "not both"),
        (("--slice", "3"), "--slice needs --input"),
        (("--provider", "auto"), "auto"),
    ],
)
def test_wrong_usage_ends_with_2(bundle: Path, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = run("--model", bundle, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_without_matplotlib_the_tables_are_written_and_the_picture_is_left_out_from_the_start(
    bundle: Path, tmp_path: Path
) -> None:
    blocked = "import sys; sys.modules['matplotlib'] = None; from samri_runtime.bench._command import main; main()"
    asked = ["--model", str(bundle), "--provider", "cpu", *QUICK, "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", blocked, *asked],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert "bench.png is left out" in first
    assert "pip install 'samri[bench]'" in first
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bench.csv", "bench.json", "bench.md"]


def test_a_long_measurement_says_that_it_is_at_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_measure, "_REPORT_S", 0.05)
    said: list[str] = []
    measure(bundle, [], phantom_scene(), EFFORT, progress=said.append)
    assert any(line.startswith("cpu fp32: ") and line.endswith(" s so far") for line in said)


def test_what_cannot_be_written_is_said_before_the_work(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = run("--model", bundle, *QUICK, "--output", tmp_path / "file")
    assert (code, out) == (1, "")
    assert "it is not a folder" in err
    code, out, err = run("--model", bundle, *QUICK, "--precision", "int8")
    assert (code, out) == (1, "")
    assert "holds no int8 encoder" in err


def test_agreement_is_none_of_a_failed_case() -> None:
    assert Measurements(ABSENT).agreement is None
    assert Agreement(1.0, 1.0, 0.0, 3).informative == 3


def test_earlier_figures_are_replaced_only_when_asked(bundle, tmp_path):
    (tmp_path / "bench.md").write_text("mine")
    code, out, err = run("--model", bundle, *QUICK, "--output", tmp_path)
    assert (code, out) == (1, "")
    assert "bench.md already exists" in err
    assert (tmp_path / "bench.md").read_text() == "mine"
