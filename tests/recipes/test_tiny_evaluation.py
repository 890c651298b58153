"""The measurement of the demo model as a whole, on a small seeded model, made data and the T1 template."""

from __future__ import annotations

import csv
import gzip
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from scipy.stats import wilcoxon
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from samri.hashing import file_sha256
from samri_export import export_bundle
from samri_runtime import Predictor
from samri_tiny.evaluate import (
    TestSlice,
    ask_all,
    cases_of,
    digest,
    main,
    mricrop_slices,
    synthetic_slices,
    template_slices,
)
from samri_tiny.evaluate._answers import WAYS
from samri_tiny.evaluate._command import measured_on
from samri_tiny.evaluate._frozen import PUBLISHED, read_list
from samri_tiny.evaluate._slices import MRICROP_NAMES
from tests.support.sams import save_checkpoint, with_other_decoder

pytestmark = pytest.mark.slow

DATA = os.environ.get("SAMRI_TEST_DATA", "")
SEED = 1  # Of a decoder whose single mask scores highest, so that it shows if that were taken for a candidate.
CARD = "# Card\n\n<!-- figures:start -->\nold\n<!-- figures:end -->\n\nBelow.\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def write_nifti(path: Path, array: npt.NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def nested_balls(seed: int) -> npt.NDArray[np.uint8]:
    """A head: labels inside each other and beside each other."""
    grid = np.indices((64, 64, 64)) - 32
    labels = np.zeros((64, 64, 64), np.uint8)
    labels[(grid**2).sum(axis=0) < 30**2] = 3
    for label, (offset, radius) in enumerate([((0, 8, -10), 12), ((4, -12, 6), 10)], start=10 + seed % 2):
        labels[((grid - np.reshape(offset, (3, 1, 1, 1))) ** 2).sum(axis=0) < radius**2] = label
    return labels


def write_gipl(path: Path, voxels: npt.NDArray[np.int16]) -> None:
    header = struct.pack(">4HH4f", *voxels.shape, 1, 15, 1.0, 1.0, 1.0, 0.0)
    header += bytes(252 - len(header)) + struct.pack(">I", 0xEFFFE9B0)
    path.write_bytes(gzip.compress(header + voxels.astype(">i2").tobytes(order="F")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_evaluation")
    for number in range(6):
        write_nifti(folder / "maps" / f"head_{number}.nii.gz", nested_balls(number))
    volume = nested_balls(0)
    noise = np.random.default_rng(0).normal(0, 4, volume.shape)
    (folder / "crop").mkdir()
    write_gipl(folder / "crop" / "MRIcrop-orig.gipl.gz", (10 * volume + noise).astype(np.int16))
    crop = np.select([volume == 3, volume > 9], [1, 8]).astype(np.int16)
    crop[4:14, 4:14] = crop[50:60, 50:60] = 8  # More than one part in every axial slice.
    write_gipl(folder / "crop" / "MRIcrop-seg.gipl.gz", crop)
    for index in (24, 30, 38):
        write_nifti(
            folder / "knees" / f"knee{index % 4}_img_{index}.nii.gz", (10.0 * volume + noise)[:, :, index, None]
        )
        write_nifti(folder / "knees" / f"knee{index % 4}_seg_{index}.nii.gz", volume[:, :, index, None])
    return folder


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory, small_sam: Sam) -> Path:
    folder = tmp_path_factory.mktemp("tiny_other")
    checkpoint = save_checkpoint(folder / "other.pth", with_other_decoder(small_sam, SEED))
    return export_bundle(checkpoint, folder / "other", profile="samri", verify="off").folder


@pytest.fixture(scope="module")
def finished(data: Path, bundle: Path, other_bundle: Path) -> SimpleNamespace:
    card, output = data / "card.md", data / "out"
    card.write_text(CARD)
    result = run(
        *("--model", f"first={bundle}", "--model", f"second={other_bundle}", "--label-maps", data / "maps"),
        *("--mricrop", data / "crop", "--slices", data / "knees", "--no-template", "--quick", "--threads", 1),
        *("--output", output, "--model-card", card, "--write-list", data / "list.json"),
    )
    assert result.exit_code == 0, result.output
    with (output / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return SimpleNamespace(output=output, card=card, stdout=result.stdout, stderr=result.stderr, rows=rows)


def of(rows: Sequence[dict[str, str]], **wanted: str) -> list[dict[str, str]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_every_way_of_asking_is_what_segment_anything_answers(other_bundle: Path, small_sam: Sam) -> None:
    rng = np.random.default_rng(2)
    rows, columns = np.indices((96, 128))
    first = (rows - 40) ** 2 + (columns - 40) ** 2 < 20**2
    second = (abs(rows - 70) < 12) & (abs(columns - 90) < 25)
    image = (60 + 90 * first + 150 * second + rng.normal(0, 9, first.shape)).clip(0, 255).astype(np.uint8)
    image[0, :2] = 0, 255  # The profile's min-max changes nothing, as segment-anything doesn't.
    test = TestSlice("drawn", "nobody", image, {"first": first, "second": second, "both": first | second})
    cases = cases_of(test, seed=0)
    answers = {id(answer.case): answer for answer in ask_all(test, cases, {"m": Predictor(other_bundle, "cpu")})}
    assert len(cases) == 5
    reference = SamPredictor(with_other_decoder(small_sam, SEED))
    reference.set_image(np.repeat(image[:, :, None], 3, axis=2))

    def overlap(mask: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
        return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))

    seen, apart = [], []
    for case in cases:
        point = {"point_coords": case.point[None], "point_labels": np.ones(1)}
        box, score, logits = reference.predict(box=case.box, multimask_output=False)
        three, scores, _ = reference.predict(**point, multimask_output=True)
        wrong, kind = correction(box[0], case.truth)
        refined, _, _ = reference.predict(
            point_coords=wrong[None],
            point_labels=np.array([kind]),
            box=case.box,
            mask_input=logits,
            multimask_output=False,
        )
        expected = {
            "box": box[0],
            "tight box": reference.predict(box=case.tight_box, multimask_output=False)[0][0],
            "refined": refined[0],
            "point": reference.predict(**point, multimask_output=False)[0][0],
            "best of three": three[scores.argmax()],
        }
        answer = answers[id(case)]
        assert answer.score == pytest.approx(score[0], abs=1e-3)
        np.testing.assert_array_less((answer.unpacked() != box[0]).mean(), 0.002)
        seen.append([answer.dice[way] for way in WAYS])
        apart.append([answer.dice[way] - overlap(expected[way], case.truth) for way in WAYS])
    # A pixel on the fence may fall to either side, but not in most of the answers.
    assert np.abs(apart).max() < 0.004
    assert np.median(np.abs(apart), axis=0).max() < 1e-5
    assert (np.ptp(seen, axis=1) > 0.02).sum() >= 3  # The ways differ, so that agreeing means something.


def correction(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float64], int]:
    """By flood fill and by looking at all distances; slow, and not the project's way."""
    from skimage.measure import label
    from skimage.morphology import medial_axis

    pieces = []
    for kind, error in ((1, truth & ~found), (0, found & ~truth)):
        numbered = label(error, connectivity=1)
        pieces += [(int((numbered == each).sum()), kind, numbered == each) for each in range(1, numbered.max() + 1)]
    _, kind, piece = max(pieces, key=lambda each: (each[0], each[1]))
    _, depth = medial_axis(np.pad(piece, 1), return_distance=True)
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return np.array([column - 1.0, row - 1.0]), kind


def test_the_tables_hold_the_means_of_the_cases(finished: SimpleNamespace) -> None:
    numbers = json.loads((finished.output / "results.json").read_text())
    sets = {each["name"]: each for each in numbers["sets"]}
    assert list(sets) == ["synthetic", "mricrop", "dataset_1"]
    visible = [
        float(row["dice_box"])
        for row in of(finished.rows, set="synthetic", by="second")
        if row["part"] != "0" and float(row["cnr"]) >= 1
    ]
    group = next(each for each in sets["synthetic"]["groups"]["connected"] if each["model"] == "second")
    assert "visible" in group["name"]
    assert group["cases"] == len(visible) > 5
    assert group["dice"]["box"] == pytest.approx(np.mean(visible), abs=1e-5)
    for unit, kept in (("connected", lambda row: row["part"] != "0"), ("whole", lambda row: row["parts"] == "1")):
        for by in ("first", "ellipse", "Otsu"):
            named = of(finished.rows, set="mricrop", by=by, structure=MRICROP_NAMES[8])
            some = [float(row["dice_tight_box"]) for row in named if kept(row) or (unit, row["part"]) == ("whole", "0")]
            (group,) = (
                each
                for each in sets["mricrop"]["groups"][unit]
                if (each["name"], each["model"]) == (MRICROP_NAMES[8], "first")
            )
            means = group["dice"] if by == "first" else group["baselines"][by]
            assert means["tight box"] == pytest.approx(np.mean(some), abs=1e-5)
            assert group["cases"] == len(some)


def test_a_row_of_the_card_says_how_far_the_model_is_above_the_better_baseline(finished: SimpleNamespace) -> None:
    tables = (finished.output / "tables.md").read_text(encoding="utf-8")
    (line,) = (each for each in tables.splitlines() if each.startswith("| **visible") and "| first |" in each)
    cells = [float(cell.strip(" *")) for cell in line.strip("| ").split("|")[2:]]
    kept = [row for row in of(finished.rows, set="synthetic") if row["part"] != "0" and float(row["cnr"]) >= 1]
    means = {
        (by, way): np.mean([float(row[f"dice_{way}"]) for row in of(kept, by=by)])
        for by in ("first", "ellipse", "Otsu")
        for way in ("box", "tight_box")
    }
    box, tight = ([means[by, way] for by in ("first", "ellipse", "Otsu")] for way in ("box", "tight_box"))
    own = of(kept, by="first")
    others = [np.mean([float(row[f"dice_{way}"]) for row in own]) for way in ("refined", "point", "best_of_three")]
    dice, scores = (np.array([float(row[key]) for row in own]) for key in ("dice_box", "score"))
    error = np.abs(scores - dice / (2 - dice)).mean()
    expected = [len(own), *box, box[0] - max(box[1:]), tight[0], tight[0] - max(tight[1:]), *others, error]
    assert cells == pytest.approx(expected, abs=6e-4)
    assert not of(finished.rows, set="synthetic", by="Otsu")[0]["score"]


def test_sizes_contrasts_and_subjects_each_make_up_the_whole(finished: SimpleNamespace) -> None:
    numbers = json.loads((finished.output / "results.json").read_text())
    groups = [group for group in numbers["sets"][0]["groups"]["connected"] if group["model"] == "first"]
    everything = groups[0]
    for start in ("100 ", "CNR ", "head_"):
        some = [
            group
            for group in groups
            if group["name"].startswith(start) or (start == "100 " and group["name"].endswith("pixels"))
        ]
        assert sum(group["cases"] for group in some) == everything["cases"]
        total = sum(group["cases"] * group["dice"]["box"] for group in some)
        assert total == pytest.approx(everything["cases"] * everything["dice"]["box"])


def test_all_parts_in_one_box_are_a_case_of_their_own(finished: SimpleNamespace) -> None:
    numbers = json.loads((finished.output / "results.json").read_text())
    groups = next(each for each in numbers["sets"] if each["name"] == "mricrop")["groups"]
    rows = of(finished.rows, set="mricrop", by="Otsu", structure=MRICROP_NAMES[8])
    assert len(of(rows, part="0")) >= 1
    counts = {
        unit: next(group["cases"] for group in groups[unit] if group["name"] == MRICROP_NAMES[8]) for unit in groups
    }
    assert counts == {
        "connected": sum(row["part"] != "0" for row in rows),
        "whole": sum(row["part"] == "0" or row["parts"] == "1" for row in rows),
    }
    assert counts["connected"] > counts["whole"]


def test_models_are_compared_by_slice(finished: SimpleNamespace) -> None:
    numbers = json.loads((finished.output / "results.json").read_text())
    found = next(each for each in numbers["sets"] if each["name"] == "mricrop")["tests"]
    assert len(found) == 2 * 2 * 2 + 5
    test = next(each for each in found if (each["first"], each["way"]) == ("first", "refined"))
    by_slice: dict[str, dict[str, list[float]]] = {"first": {}, "second": {}}
    for row in finished.rows:
        if row["set"] == "mricrop" and row["by"] in by_slice and row["part"] != "0":
            by_slice[row["by"]].setdefault(row["slice"], []).append(float(row["dice_refined"]))
    means = {name: np.array([np.mean(each) for each in slices.values()]) for name, slices in by_slice.items()}
    assert test["comparison"]["cases"] == len(means["first"])
    difference = means["second"] - means["first"]
    assert test["comparison"]["mean_difference"] == pytest.approx(difference.mean(), abs=1e-5)
    assert test["comparison"]["p"] == pytest.approx(wilcoxon(difference).pvalue, rel=1e-3)
    assert test["p_holm"] >= test["comparison"]["p"]


def test_only_held_out_subjects_are_drawn(finished: SimpleNamespace) -> None:
    assert {row["subject"] for row in of(finished.rows, set="synthetic")} == {"head_4"}


def test_the_published_card_is_about_the_shipped_weights() -> None:
    card = (Path(__file__).resolve().parents[2] / "docs" / "samri-tiny.md").read_text(encoding="utf-8")
    figures = card.partition("<!-- figures:start -->")[2].partition("<!-- figures:end -->")[0]
    assert measured_on({"samri-tiny": Predictor("samri-tiny")}) in figures
    checkpoint = Path(__file__).resolve().parents[1] / "weights" / "samri-tiny.pth"
    assert f"`{file_sha256(checkpoint)}`" in card


def test_the_model_card_gets_the_tables_between_its_markers(finished: SimpleNamespace) -> None:
    tables = (finished.output / "tables.md").read_text(encoding="utf-8")
    card = finished.card.read_text(encoding="utf-8")
    assert card == CARD.replace("\nold\n", f"\n\n{tables.strip()}\n\n")
    assert finished.stdout.strip() == tables.strip()
    assert "aren't in the frozen list" in tables
    for table in (block for block in tables.split("\n\n") if block.startswith("|")):
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_pictures_are_drawn_of_every_set(finished: SimpleNamespace) -> None:
    names = sorted(file.name for file in finished.output.iterdir())
    assert names == ["cases.csv", "dataset_1.png", "mricrop.png", "results.json", "synthetic.png", "tables.md"]
    assert all((finished.output / name).stat().st_size > 20_000 for name in names if name.endswith(".png"))


def test_a_written_list_is_recognized_again_and_another_seed_is_not(
    finished: SimpleNamespace, data: Path, bundle: Path, tmp_path: Path
) -> None:
    seed, digests = read_list(data / "list.json")
    assert (seed, list(digests)) == (0, ["synthetic", "mricrop"])
    slices = mricrop_slices(data / "crop", 4, 8)
    assert digests["mricrop"] == {test.name: digest(cases) for test in slices if (cases := cases_of(test, seed))}
    same = ("--model", bundle, "--mricrop", data / "crop", "--no-template", "--quick", "--no-pictures")
    changed = json.loads((data / "list.json").read_text())
    changed["sets"]["mricrop"][next(iter(changed["sets"]["mricrop"]))] = "0" * 12
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    for number, (arguments, said) in enumerate(
        [
            (("--frozen", data / "list.json"), "Cases are those of the frozen list ("),
            (("--frozen", data / "list.json", "--seed", 1), "Cases aren't those of the frozen list, whose seed is 0"),
            (("--frozen", tmp_path / "changed.json"), "Cases DIFFER from the frozen list in 1 of "),
        ]
    ):
        result = run(*same, *arguments, "--output", tmp_path / str(number))
        assert result.exit_code == 0, result.output
        assert said in result.stdout


def test_the_templates_cases_are_those_of_the_published_list() -> None:
    _, published = read_list(PUBLISHED)
    found = {test.name: digest(cases) for test in template_slices(8, 8) if (cases := cases_of(test, seed=0))}
    assert len(found) >= 7
    assert found == {name: published["template"].get(name) for name in found}


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="SAMRI_TEST_DATA names no folder with the data that the list was made of")
def test_the_drawn_cases_and_those_of_the_crop_are_those_of_the_published_list() -> None:
    seed, published = read_list(PUBLISHED)
    sets = {
        "synthetic": synthetic_slices(Path(DATA) / "synthseg_labels", 1, seed),
        "mricrop": mricrop_slices(Path(DATA) / "itksnap_mricrop", 4, 4),
    }
    for name, slices in sets.items():
        found = {test.name: digest(cases) for test in slices if (cases := cases_of(test, seed))}
        assert len(found) >= 3
        assert found == {each: published[name].get(each) for each in found}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--no-template"], 2, "nothing to measure on"),
        (["--model", "BUNDLE"], 2, "two models are called 'small'"),
        (["--model", "Otsu=BUNDLE"], 2, "can't be called 'Otsu'"),
        (["--model", "=BUNDLE"], 2, "is not of the form NAME=BUNDLE"),
        (["--label-maps", "DATA/crop"], 1, "of fewer than 5 none is held out"),
        (["--label-maps", "DATA/nowhere"], 1, "is not a folder"),
        (["--mricrop", "DATA/maps"], 1, "MRIcrop-orig.gipl.gz does not exist"),
        (["--model-card", "DATA/maps/no.md"], 1, "cannot read"),
        (["--model-card", "DATA/plain.md"], 1, "needs the lines <!-- figures:start -->"),
        (["--frozen", "DATA/plain.md"], 1, "is not a frozen list of cases"),
        (["--output", "DATA/maps"], 1, "already exists"),
    ],
)
def test_what_cannot_be_measured_ends_in_one_line(
    arguments: list[str], code: int, said: str, data: Path, bundle: Path, tmp_path: Path
) -> None:
    (data / "plain.md").write_text("# No markers\n")
    filled = [each.replace("BUNDLE", str(bundle)).replace("DATA", str(data)) for each in arguments]
    defaults = ["--output", str(tmp_path / "out")] if "--output" not in arguments else []
    result = run("--model", bundle, "--quick", "--no-pictures", *defaults, *filled)
    assert result.exit_code == code
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
