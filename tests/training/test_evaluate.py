from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import cv2
import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner, Result
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from samri.errors import InputError
from samri.manifest import Precision, embedding_id
from samri.model import ImageEncoder, encoder_sha256
from samri.preprocessing import preprocess, profile
from samri_runtime import Embedding
from samri_training.evaluate import (
    METRICS,
    EmbeddedSlices,
    ModelRequest,
    Protocol,
    SliceFolder,
    evaluate,
    main,
    measure,
    open_model,
    summarize,
)
from samri_training.store import EmbeddedSlice, EmbeddingStore, EncoderFacts, ShardWriter, StoreInfo, StorePlan
from tests.support.sams import save_checkpoint, with_other_decoder

pytestmark = pytest.mark.slow  # Whole runs: together they take longer than all other fast tests.

SPACING = (0.5, 2.0)
SHAPE = (96, 128)
CASES = 7


def label_map(seed: int) -> npt.NDArray[np.uint16]:
    """Three structures, a small, a medium and a large one, and a speck of four pixels."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, dtype=np.uint16)
    row, column = rng.integers(0, 6, 2)
    mask[10 + row : 50 + row, 8 + column : 70 + column] = 1
    mask[60 + row : 75 + row, 20 + column : 40 + column] = 2
    mask[60 + row : 66 + row, 100 + column : 107 + column] = 5
    mask[94:96, 0:2] = 9
    return mask


def write_slice(folder: Path, case: str, number: int, image: npt.NDArray[Any], mask: npt.NDArray[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING, 4.0, 1.0])
    for kind, pixels in (("img", image), ("seg", mask)):
        nibabel.Nifti1Image(pixels[:, :, None], affine).to_filename(folder / f"{case}_{kind}_{number:03d}.nii.gz")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two test slices of each case, and one for training that must stay out of it."""
    root = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for number in range(2 * CASES):
        mask = label_map(number)
        image = np.clip(40 * (mask > 0) + 30 * mask + rng.normal(60, 15, SHAPE), 0, 255).astype(np.uint8)
        image[0, 0], image[0, 1] = 0, 255  # So that SAM's own preprocessing leaves uint8 as it is, too.
        write_slice(root / "testing", f"case{number // 2}", number % 2, image, mask)
    write_slice(root / "training", "other", 0, image, mask)
    return root


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """The test slices of one case only."""
    folder = tmp_path_factory.mktemp("few")
    for file in (dataset / "testing").glob("case3_*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def tuned_sam(small_sam: Sam) -> Sam:
    return with_other_decoder(small_sam, seed=3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, small_sam: Sam, tuned_sam: Sam) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return save_checkpoint(folder / "zero.pth", small_sam), save_checkpoint(folder / "tuned.pth", tuned_sam)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, dataset: Path, checkpoints: tuple[Path, Path]
) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("out") / "results"
    models = ["--model", f"SAM={checkpoints[0]}", "--model", f"SAMRI|B={checkpoints[1]}"]
    prompts = ["--prompt", "box", "--prompt", "box+point", "--jitter", "--label-name", "1=putamen", "--device", "cpu"]
    result = run(*models, "--data-dir", dataset, "--output", output, *prompts)
    assert result.exit_code == 0, result.output
    return output, result


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_structure_of_every_test_slice_is_a_row_of_every_model_and_prompt(
    finished: tuple[Path, Result],
) -> None:
    rows = rows_of(finished[0])
    assert len(rows) == 2 * 2 * (2 * CASES) * 3
    assert {row["model"] for row in rows} == {"SAM", "SAMRI|B"}
    assert {row["prompt"] for row in rows} == {"box", "mixed"}
    assert {row["case"] for row in rows} == {f"case{number}" for number in range(CASES)}
    assert {(row["label"], row["label_name"], row["size"]) for row in rows} == {
        ("1", "putamen", "large"),
        ("2", "", "medium"),
        ("5", "", "small"),
    }
    assert {(row["label"], row["pixels"]) for row in rows} == {("1", "2480"), ("2", "300"), ("5", "42")}


def test_the_rows_are_what_segment_anything_gives(
    finished: tuple[Path, Result], dataset: Path, small_sam: Sam, tuned_sam: Sam
) -> None:
    predictors = {"SAM": SamPredictor(small_sam), "SAMRI|B": SamPredictor(tuned_sam)}
    seen, found = set(), []
    for row in rows_of(finished[0]):
        if row["case"] not in ("case0", "case5"):
            continue
        name = row["slice"].rpartition("/")[2]
        image = np.asarray(nibabel.load(dataset / "testing" / f"{name}.nii.gz").dataobj)[:, :, 0]
        mask_file = dataset / "testing" / f"{name.replace('_img_', '_seg_')}.nii.gz"
        truth = np.asarray(nibabel.load(mask_file).dataobj)[:, :, 0] == int(row["label"])
        predictor = predictors[row["model"]]
        if (row["model"], name) not in seen:
            predictor.set_image(np.repeat(image[:, :, None], 3, axis=2))
            seen = {each for each in seen if each[0] != row["model"]} | {(row["model"], name)}
        point = np.array(row["point_xy"].split(), dtype=float).reshape(-1, 2)
        masks, scores, _ = predictor.predict(
            point_coords=point if len(point) else None,
            point_labels=np.ones(len(point)) if len(point) else None,
            box=np.array(row["box_xyxy"].split(), dtype=float),
            multimask_output=False,
        )
        expected = measure(masks[0], truth, SPACING)
        assert float(row["dice"]) == pytest.approx(expected.dice, abs=2e-3)
        assert float(row["iou"]) == pytest.approx(expected.iou, abs=2e-3)
        assert float(row["msd_mm"]) == pytest.approx(expected.msd, rel=0.02, abs=0.05)
        assert float(row["score"]) == pytest.approx(scores[0], abs=1e-3)
        found.append(expected.dice)
    assert len(found) == 48
    assert np.std(found) > 0.05  # Masks that depend on the prompt, so that agreeing means something.


def test_prompts_come_from_the_truth_and_are_the_same_for_all_models(finished: tuple[Path, Result]) -> None:
    asked: dict[tuple[str, ...], set[tuple[str, str]]] = {}
    for row in rows_of(finished[0]):
        key = (row["prompt"], row["slice"], row["label"])
        asked.setdefault(key, set()).add((row["box_xyxy"], row["point_xy"]))
    assert all(len(prompts) == 1 for prompts in asked.values())
    (first,) = asked["box", next(key[1] for key in asked), "5"]
    assert first[1] == ""


def test_the_summary_holds_the_means_and_tests_of_the_rows(finished: tuple[Path, Result]) -> None:
    rows = rows_of(finished[0])
    numbers = json.loads((finished[0] / "summary.json").read_text())
    assert numbers["counts"] == {
        "slices": 2 * CASES,
        "cases": CASES,
        "structures": 6 * CASES,
        "slices_without_structures": 0,
        "structures_too_small": 2 * CASES,
    }
    for group in numbers["by_size"] + numbers["by_structure"]:
        some = [
            row
            for row in rows
            if (row["prompt"], row["model"]) == (group["prompt"], group["model"])
            and group["size"] in ("all", row["size"])
            and group["label"] in (None, int(row["label"]))
        ]
        assert group["structures"] == len(some)
        assert group["cases"] == CASES
        for metric, column in (("dice", "dice"), ("hd95", "hd95_mm")):
            values = [float(row[column]) for row in some]
            assert group["metrics"][metric]["mean"] == pytest.approx(np.mean(values), abs=1e-5)
            assert group["metrics"][metric]["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-5)
    assert len(numbers["tests"]) == 2 * 4 * len(METRICS)
    test = next(t for t in numbers["tests"] if (t["prompt"], t["size"], t["metric"]) == ("box", "all", "dice"))
    by_case = {}
    for model in ("SAM", "SAMRI|B"):
        by_case[model] = [
            np.mean(
                [float(r["dice"]) for r in rows if (r["prompt"], r["model"], r["case"]) == ("box", model, f"case{i}")]
            )
            for i in range(CASES)
        ]
    assert test["cases"] == CASES
    difference = np.mean(np.subtract(by_case["SAMRI|B"], by_case["SAM"]))
    assert test["mean_difference"] == pytest.approx(difference, abs=1e-5)
    assert test["p"] <= test["p_holm"] <= 1


def test_the_report_can_be_read(finished: tuple[Path, Result]) -> None:
    report = (finished[0] / "report.md").read_text(encoding="utf-8")
    assert "## Prompt: box + point" in report
    assert "| small (< 0.5 %) | SAM | 14 (7) |" in report
    assert "| 1 putamen | SAMRI\\|B | 14 (7) |" in report
    for table in (block for block in report.split("\n\n") if block.startswith("|")):
        widths = {line.replace("\\|", "").count("|") for line in table.splitlines()}
        assert len(widths) == 1
    assert finished[1].stdout.strip() in report
    assert "too few" not in report
    assert "| SAM → SAMRI\\|B | all | 7 |" in report


def test_every_metric_has_a_plot_for_every_prompt(finished: tuple[Path, Result]) -> None:
    pictures = sorted(path.name for path in finished[0].glob("*.png"))
    assert pictures == sorted(f"{metric}_{prompt}.png" for metric in METRICS for prompt in ("box", "mixed"))
    picture = cv2.imread(str(finished[0] / "dice_box.png"))
    assert picture.shape[0] > 300
    assert picture.shape[1] > 500
    assert picture.std() > 5


class Fixed:
    """A model of its own kind: the same logit everywhere, whatever it is asked."""

    backend: Literal["onnx", "torch"] = "torch"

    def __init__(self, name: str, logit: float, encoder: str | None = "some") -> None:
        self.name = name
        self.logit = logit
        self.profile = profile("samri")
        self.image_size = 128
        self.embedding_id = encoder
        self.encoded = 0
        self.asked: list[list[float]] = []

    def encode(self, image: npt.NDArray[Any], intensity_range: tuple[float, float] | None) -> Embedding:
        self.encoded += 1
        return Embedding(np.zeros((1, 1, 1, 1), np.float32), (image.shape[0], image.shape[1]), self.embedding_id)

    def decode(
        self, embedding: Embedding, coords: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        self.asked += coords.reshape(len(coords), -1).tolist()
        logits = np.full((len(labels), 4, 32, 32), self.logit, dtype=np.float32)
        logits[:, 2] = 1
        return logits, np.tile(np.array([0.5, 0.1, 0.9, 0.2], np.float32), (len(labels), 1))

    def facts(self, precision: Precision) -> EncoderFacts:
        return EncoderFacts(f"{self.embedding_id} {precision}", "samri", 128, (1, 1, 1), "none", precision, "none", "")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "notes": []}


def test_empty_predictions_are_counted_with_the_worst_value(dataset: Path) -> None:
    summary = summarize(evaluate(SliceFolder(dataset), [Fixed("nothing", -1)], Protocol()))
    whole = summary.groups[0]
    assert (whole.name, whole.structures, whole.empty) == ("all", 6 * CASES, 6 * CASES)
    diagonal = float(np.hypot(96 * 0.5, 128 * 2.0))
    assert [whole.spreads[metric].mean for metric in METRICS] == pytest.approx([0, 0, *[diagonal] * 3])
    assert whole.score_error == pytest.approx(0.5)


def test_models_that_share_an_encoder_encode_each_slice_once(dataset: Path) -> None:
    models = [Fixed("a", 1), Fixed("b", -1), Fixed("c", 1, encoder="another")]
    evaluate(SliceFolder(dataset), models, Protocol(("box", "point")))
    assert [model.encoded for model in models] == [2 * CASES, 0, 2 * CASES]


def test_encoders_that_do_not_say_what_they_are_share_nothing(dataset: Path) -> None:
    models = [Fixed("a", 1, encoder=None), Fixed("b", -1, encoder=None)]
    evaluate(SliceFolder(dataset), models, Protocol(("box", "point")))
    assert [model.encoded for model in models] == [2 * CASES, 2 * CASES]


def test_prompts_depend_on_the_seed_and_not_on_what_else_is_evaluated(dataset: Path, few: Path) -> None:
    def asked(folder: Path, seed: int, *before: Fixed) -> list[list[float]]:
        model = Fixed("last", 1)
        evaluate(SliceFolder(folder), [*before, model], Protocol(("point",), seed=seed))
        return model.asked

    alone = asked(dataset, 1)
    assert asked(dataset, 1, Fixed("first", -1)) == alone
    assert asked(dataset / "testing", 1) == alone
    assert asked(dataset, 2) != alone
    subset = asked(few, 1)
    assert [each for each in alone if each in subset] == subset


def test_multimask_takes_the_candidate_that_the_model_scores_best(dataset: Path) -> None:
    evaluation = evaluate(SliceFolder(dataset), [Fixed("single is empty", -1)], Protocol(multimask=True))
    assert {row.score for row in evaluation.rows} == {float(np.float32(0.9))}
    assert not any(row.measures.empty for row in evaluation.rows)


def test_a_bundle_and_its_checkpoint_give_the_same_results(
    few: Path, bundle: Path, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    models = ["-m", f"onnx={bundle}", "-m", f"torch={checkpoints[0]}", "-m", checkpoints[1], "--provider", "cpu"]
    result = run(*models, "--data-dir", few, "-o", tmp_path / "out", "--no-plots", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    numbers = json.loads(result.stdout)
    assert [model["name"] for model in numbers["models"]] == ["onnx", "torch", "tuned"]
    assert len({model["embedding_id"] for model in numbers["models"]}) == 1
    dice = {group["model"]: group["metrics"]["dice"]["mean"] for group in numbers["by_size"] if group["size"] == "all"}
    assert dice["onnx"] == pytest.approx(dice["torch"], abs=1e-3)
    assert abs(dice["tuned"] - dice["torch"]) > 3e-3
    assert numbers["models"][0]["ran_on"]["decoder"] == "cpu"
    assert [model.get("folder", model.get("file")) for model in numbers["models"]] == [
        bundle.name,
        *(checkpoint.name for checkpoint in checkpoints),
    ]
    assert numbers["source"]["folder"] == few.name
    for name in ("summary.json", "report.md", "cases.csv"):
        text = (tmp_path / "out" / name).read_text("utf-8")
        assert not any(str(folder.parent) in text for folder in (bundle, few, *checkpoints))
    assert not list((tmp_path / "out").glob("*.png"))


def store_of(folder: Path, few: Path, sam: Sam) -> Path:
    """The test slices, embedded in full precision."""
    encoder = ImageEncoder(sam.image_encoder)
    samples = list(SliceFolder(few))
    identity = embedding_id(encoder_sha256(sam), profile("samri"), 128, "fp32")
    facts = EncoderFacts(identity, "samri", 128, (64, 16, 16), "vit_64x4", "fp32", "small.pth", "0" * 64)
    plan = StorePlan.of(StoreInfo.of(facts, "fp32", "slices"), [(sample.name, sample.case) for sample in samples])
    folder.mkdir()
    plan.begin(folder)
    (shard,) = plan.shards
    with torch.inference_mode(), ShardWriter(folder, plan.info, shard, 1) as writer:
        for sample in samples:
            assert sample.image is not None
            pixels = torch.from_numpy(preprocess(sample.image, profile("samri"), 128))
            features = encoder(pixels)[0].numpy()
            writer.append([EmbeddedSlice(sample.name, sample.case, features, sample.mask, sample.spacing)])
        writer.seal({})
    return folder


def test_a_store_gives_the_same_results_as_its_slices(
    few: Path, small_sam: Sam, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    store = store_of(tmp_path / "testing", few, small_sam)
    model = open_model(ModelRequest("tuned", checkpoints[1]), device="cpu")
    protocol = Protocol(("box", "point"), jitter=True)
    by_source = [
        evaluate(source, [model], protocol).rows
        for source in (SliceFolder(few), EmbeddedSlices(EmbeddingStore.open(store)))
    ]
    assert len(by_source[0]) == len(by_source[1])
    for one, other in zip(*by_source, strict=True):
        assert (one.slice, one.case, one.label, one.pixels) == (other.slice, other.case, other.label, other.pixels)
        assert one.prompt_used.to_json() == other.prompt_used.to_json()
        assert one.measures.dice == pytest.approx(other.measures.dice, abs=1e-3)


def test_a_published_cache_is_taken_for_the_first_models(
    few: Path, small_sam: Sam, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    encoder = ImageEncoder(small_sam.image_encoder)
    (tmp_path / "cache").mkdir()
    for sample in SliceFolder(few):  # type: ignore[attr-defined]
        assert sample.image is not None
        with torch.inference_mode():
            features = encoder(torch.from_numpy(preprocess(sample.image, profile("samri"), 128))).numpy()
        file = tmp_path / "cache" / f"{sample.name.rpartition('/')[2]}.npz"
        np.savez_compressed(file, img=features, mask=sample.mask[None], ori_size=np.array(SHAPE))
    models = ("-m", checkpoints[0], "-m", checkpoints[1], "--device", "cpu", "--no-plots", "--json")
    cached, direct = (
        run(*models, option, folder, "-o", tmp_path / option)
        for option, folder in (("--embedding-dir", tmp_path / "cache"), ("--data-dir", few))
    )
    assert cached.exit_code == 0, cached.output
    numbers, expected = json.loads(cached.stdout), json.loads(direct.stdout)
    assert numbers["notes"] == ["the store doesn't know the slices' spacing: distances are in pixels"]
    for one, other in zip(numbers["by_size"], expected["by_size"], strict=True):
        assert one["metrics"]["dice"]["mean"] == pytest.approx(other["metrics"]["dice"]["mean"], abs=1e-3)


def test_a_store_of_another_encoder_is_refused(few: Path, small_sam: Sam, tmp_path: Path) -> None:
    store = EmbeddingStore.open(store_of(tmp_path / "store", few, small_sam))
    with pytest.raises(InputError, match=r"store was embedded with another encoder .* the model stranger"):
        evaluate(EmbeddedSlices(store), [Fixed("stranger", 1)], Protocol())


def test_a_size_that_no_structure_has_is_left_out_of_the_tables(
    few: Path, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    for mask in few.glob("*_seg_*"):
        shutil.copy(mask, tmp_path)
        image = nibabel.load(mask)
        large = np.where(np.asarray(image.dataobj) == 1, 1, 0).astype(np.uint16)
        nibabel.Nifti1Image(large, image.affine).to_filename(tmp_path / mask.name)
        shutil.copy(few / mask.name.replace("_seg_", "_img_"), tmp_path)
    result = run("--model", checkpoints[0], "--data-dir", tmp_path, "--output", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, result.output
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "large (" in report
    assert "small (" not in report.partition("## How it was measured")[0]


def test_one_number_is_another_structure_in_each_dataset(
    few: Path, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    for dataset in ("brain", "knee"):
        shutil.copytree(few, tmp_path / "data" / dataset / "testing")
    options = ["--model", checkpoints[0], "--device", "cpu", "--no-plots"]
    result = run(*options, "--data-dir", tmp_path / "data", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert {row["dataset"] for row in rows_of(tmp_path / "out")} == {"brain", "knee"}
    numbers = json.loads((tmp_path / "out" / "summary.json").read_text())
    kinds = [(group["dataset"], group["label"]) for group in numbers["by_structure"]]
    assert kinds == [(dataset, label) for dataset in ("brain", "knee") for label in (1, 2, 5)]
    wholes = [group for group in numbers["by_dataset"] if group["size"] == "all"]
    assert [(group["dataset"], group["structures"]) for group in wholes] == [("brain", 6), ("knee", 6)]
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "### Dataset: brain" in report and "### Dataset: knee" in report


def test_one_case_is_reported_as_too_few(few: Path, tmp_path: Path, checkpoints: tuple[Path, Path]) -> None:
    result = run(
        *("-m", checkpoints[0], "-m", checkpoints[1], "--data-dir", few, "--device", "cpu"),
        *("-o", tmp_path / "out", "--no-plots"),
    )
    assert result.exit_code == 0, result.output
    assert "**1 case(s) are too few" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def one_line(result: Result) -> str:
    """The error, which is all that was said."""
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("samri-evaluate: error: ")
    return line


def test_failures_are_one_line_and_leave_nothing_behind(
    dataset: Path, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    model = ("-m", checkpoints[0], "--device", "cpu", "-o", output)
    assert "nowhere" in one_line(run(*model, "--data-dir", tmp_path / "nowhere"))
    assert "nowhere" in one_line(run(*model, "--embedding-dir", tmp_path / "nowhere"))
    assert "validation" in one_line(run(*model, "--data-dir", dataset, "--split", "validation"))
    assert "gone.pth" in one_line(run("-m", tmp_path / "gone.pth", "--data-dir", dataset, "-o", output))
    assert "gone" in one_line(run("-m", tmp_path / "gone", "--data-dir", dataset, "-o", output))
    assert "10000" in one_line(run(*model, "--data-dir", dataset, "--min-pixels", "10000"))
    assert list(tmp_path.iterdir()) == []


def test_a_slice_that_cannot_be_used_is_named(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    image = np.full(SHAPE, np.nan, dtype=np.float32)
    write_slice(tmp_path / "slices", "bad", 7, image, label_map(0))
    result = run("-m", checkpoints[0], "--data-dir", tmp_path / "slices", "-o", tmp_path / "out", "--device", "cpu")
    assert "bad_img_007" in one_line(result)


def test_the_model_that_comes_with_samri_goes_by_its_name(few: Path, tmp_path: Path) -> None:
    models = ("-m", "samri-tiny", "-m", "again=samri-tiny")
    result = run(*models, "--data-dir", few, "-o", tmp_path / "out", "--no-plots", "--provider", "cpu")
    assert result.exit_code == 0, result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [model["name"] for model in summary["models"]] == ["samri-tiny", "again"]
    assert {model["checkpoint"]["rounded_to"] for model in summary["models"]} == {"fp16"}


def test_older_results_are_only_replaced_on_request(few: Path, checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    arguments = ("-m", checkpoints[0], "--data-dir", few, "-o", tmp_path, "--no-plots", "--device", "cpu")
    assert "--overwrite" in one_line(run(*arguments))
    assert "wasn't made by samri-evaluate" in one_line(run(*arguments, "--overwrite"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_only_a_report_is_replaced_by_a_report(few: Path, checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ("-m", checkpoints[0], "--data-dir", few, "-o", tmp_path / "out", "--no-plots", "--device", "cpu")
    assert run(*arguments).exit_code == 0
    assert run(*arguments, "--overwrite").exit_code == 0
    (tmp_path / "out" / "run").mkdir()
    (tmp_path / "out" / "run" / "best.pth").write_bytes(b"weeks of work")
    assert "also holds run, which samri-evaluate didn't make" in one_line(run(*arguments, "--overwrite"))
    assert (tmp_path / "out" / "run" / "best.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "a/x.pth", "-m", "b/x.pth"], "two models are called 'x'"),
        (["-m", "medsam_vit_b.pth"], "--profile medsam_vit_b=medsam"),
        (["-m", "a.pth", "--profile", "b=sam"], "no model is called 'b'"),
        (["-m", "a.pth", "--profile", "a=sum"], "'sum' is none of sam, samri, medsam"),
        (["-m", "bundle", "--profile", "bundle=sam"], "'bundle' is a bundle"),
        (["-m", "a.pth", "--precision", "a=int8"], "'a' is a checkpoint"),
        (["-m", "a.pth", "--label-name", "one=x"], "NUMBER=NAME"),
        (["-m", "a.pth", "--embedding-dir", "store"], "--data-dir or --embedding-dir"),
    ],
)
def test_wrong_usage_is_told_before_any_work(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = run(*arguments, "--data-dir", "slices", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out").exists()
