"""Prompts as people have them: in voxel indices, in millimeters, and in files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result
from nibabel.affines import apply_affine

from samri.geometry import plane_view
from samri_runtime.run import main
from tests.support.files import contents
from tests.support.scans import OBLIQUE_FLIPPED, brain_like, save_nifti

GRID = (30, 34, 12)
LOW, HIGH = (6, 8, 5), (24, 25, 5)  # Corner voxels of a box on slice 5 of the last axis.
POINT = (12, 20, 5)
BOX = ("--slice", 5, "--box", 8, 6, 26, 25)  # The same as pixels: columns are the second axis, both ends included.


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return save_nifti(tmp_path / "in" / "scan.nii.gz", brain_like(GRID), sform=OBLIQUE_FLIPPED)


@pytest.fixture
def run(bundle: Path, source: Path, tmp_path: Path):
    def invoke(*options: object, stdin: str | None = None, output: str = "out", scan: Path = source) -> Result:
        given = ["-c", bundle, "-i", scan, "-o", tmp_path / output, "--provider", "cpu", "--no-png", *options]
        return CliRunner().invoke(main, [str(word) for word in given], input=stdin)

    return invoke


def labels(folder: Path, name: str = "scan") -> np.ndarray:
    return np.asarray(nib.load(folder / f"{name}_seg_.nii.gz").dataobj)


def prompts(folder: Path) -> list[dict]:
    return json.loads((folder / "scan_seg_.json").read_text("utf-8"))["prompts"]


def mm(*voxels: tuple[float, ...], lps: bool = False) -> list[float]:
    places = apply_affine(OBLIQUE_FLIPPED, np.array(voxels)) * ([-1, -1, 1] if lps else [1, 1, 1])
    return [float(number) for number in places.ravel()]


def outer(low: tuple[int, ...], high: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The corners in space of the box around these corner voxels, on their slice."""
    return (low[0] - 0.5, low[1] - 0.5, low[2]), (high[0] + 0.5, high[1] + 0.5, high[2])


@pytest.mark.parametrize("frame", ["voxel", "mm", "lps"])
def test_a_box_is_the_same_in_every_frame(run, tmp_path: Path, frame: str) -> None:
    if frame == "voxel":
        options = ["--voxel-box", *HIGH, *LOW]
    else:
        options = ["--mm-box", *mm(*outer(LOW, HIGH), lps=frame == "lps"), *["--lps"] * (frame == "lps")]
    placed = run(*options)
    assert placed.exit_code == 0, placed.stderr
    plain = run(*BOX, output="plain")
    assert plain.exit_code == 0, plain.stderr
    assert prompts(tmp_path / "out") == prompts(tmp_path / "plain")
    np.testing.assert_array_equal(labels(tmp_path / "out"), labels(tmp_path / "plain"))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_slice_of_a_plane_follows_from_a_point(run, tmp_path: Path, plane: str) -> None:
    done = run("--plane", plane, "--mm-point", *mm(POINT), "--voxel-point", *POINT)
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "out" / "scan_seg_.json").read_text("utf-8"))
    view = plane_view(GRID, OBLIQUE_FLIPPED, plane, record["slice"]["plane_index"])
    assert view.index == POINT[view.axis]
    (prompt,) = record["prompts"]
    marked = np.zeros(GRID, bool)
    marked[POINT] = True
    rows, columns = np.nonzero(view.extract(marked))
    assert prompt["points"] == [[columns[0], rows[0]]] * 2


FILES = {
    "prompts.json": json.dumps(
        [
            {"object": "left", "slice": 5, "box": [8, 6, 26, 25]},
            {"object": "right", "voxel_points": [POINT, [2, 2, 5]], "labels": [1, 0]},
        ]
    ),
    "prompts.csv": "object,slice,x1,y1,x2,y2,i,j,k,label\nleft,5,8,6,26,25,,,,\n"
    "right,,,,,,12,20,5,\nright,,,,,,2,2,5,0\n",
    "prompts.tsv": "\ufeffobject\tx\ty\tlabel\tslice\tx1\ty1\tx2\ty2\r\nleft\t\t\t\t5\t8\t6\t26\t25\r\n"
    "right\t20\t12\t1\t5\t\t\t\t\r\n\r\nright\t2\t2\t0\t5\t\t\t\t\r\n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("stdin", [False, True])
def test_files_of_prompts_mean_the_same(run, tmp_path: Path, name: str, stdin: bool) -> None:
    (tmp_path / name).write_text(FILES[name], "utf-8")
    done = run("--prompts", "-", stdin=FILES[name]) if stdin else run("--prompts", tmp_path / name)
    assert done.exit_code == 0, done.stderr
    assert prompts(tmp_path / "out") == [
        {"box": [8, 6, 26, 25], "points": [], "labels": []},
        {"box": None, "points": [[20, 12], [2, 2]], "labels": [1, 0]},
    ]
    assert "object 1 (left)" in done.stdout and "object 2 (right)" in done.stdout


def test_a_file_gives_keyframes_to_propagation(run, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("object,slice,x1,y1,x2,y2\none,4,8,6,26,25\none,7,9,7,25,24\ntwo,5,2,2,12,12\n")
    done = run("--prompts", tmp_path / "p.csv", "--propagate", "--range", 4, 7)
    assert done.exit_code == 0, done.stderr
    objects = json.loads((tmp_path / "out" / "scan_seg_.json").read_text("utf-8"))["volume"]["objects"]
    assert [(one["name"], [frame["slice"] for frame in one["keyframes"]]) for one in objects] == [
        ("one", [4, 7]),
        ("two", [5]),
    ]
    refused = run("--prompts", tmp_path / "p.csv", output="again")
    assert refused.exit_code == 1 and "the prompts are on slices 4, 5, 7: add --propagate" in refused.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--mm-point", 900, 0, 0], 1, "point (900, 0, 0) mm lies outside the scan"),
        (["--voxel-point", 30, 0, 0], 1, "point (30, 0, 0) lies outside the scan, whose grid is 30 x 34 x 12 voxels"),
        (["--voxel-point", "nan", 0, 0], 1, "lies outside the scan"),
        (["--voxel-box", 1, 1, 2, 9, 9, 4], 1, "reaches from slice 2 to 4 of axis 2"),
        (["--mm-box", *mm((3, 3, 5), (3, 9, 5))], 1, "has no area"),
        (["--voxel-box", 1, 1, 2], 2, "--voxel-box"),
        (["--voxel-box", *LOW, *HIGH, "--box", 1, 2, 3, 4], 2, "give all prompts in one way"),
        (["--voxel-box", *LOW, *HIGH, "--voxel-box", *LOW, *HIGH, "--voxel-point", *POINT], 2, "several boxes"),
        (["--voxel-point", *POINT, "--lps"], 2, "--lps is for"),
        (["--voxel-point", *POINT, "--voxel-point", 12, 20, 6], 1, "on slices 5, 6: add --propagate"),
        (["--prompts", "none.csv"], 1, "none.csv does not exist"),
        (["--prompts", "-", "--voxel-point", *POINT], 2, "not both"),
        (["--prompts", "-", "--label", "x"], 2, "leave out --label"),
    ],
)
def test_places_that_make_no_sense_are_one_line(run, source: Path, options: list, code: int, message: str) -> None:
    before = contents(source.parent.parent)
    done = run(*options, stdin=FILES["prompts.csv"])
    assert done.exit_code == code and message in done.stderr
    assert "Traceback" not in done.stderr and (code == 2 or len(done.stderr.splitlines()) == 1)
    assert contents(source.parent.parent) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("object,slice,x1,y1,x2,y2,weight\na,5,1,2,3,4,1\n", "unknown columns weight"),
        ("slice,x1,y1,x2,y2\n5,1,2,3,4\n", "no column object"),
        ("object,object\na,b\n", "one twice"),
        ("object,slice,x1,y1,x2,y2\na,5,1,2,3\n", "line 2: 5 cells under 6 columns"),
        ("object,slice,x1,y1,x2,y2\na,5,1,2,,4\n", "line 2: x2 is missing"),
        ("object,slice,x1,y1,x2,y2\na,5,1,2,three,4\n", "line 2: 'three' is no number"),
        ("object,slice,x1,y1,x2,y2\na,5,1,2,inf,4\n", "line 2: a box is 4 numbers"),
        ("object,slice,x1,y1,x2,y2\na,5.5,1,2,3,4\n", "line 2: 'slice' is a whole number"),
        ("object,slice,x1,y1,x2,y2\na,,,,,\n", "line 2: 'a' has no prompt"),
        (
            "object,slice,x1,y1,x2,y2\na,5,1,2,3,4\na,5,5,6,7,8\n",
            "'a' has two boxes on slice 5: give each object its own",
        ),
        ("object,x1,y1,x2,y2\na,1,2,3,4\n", "choose --slice 0 to 11"),
        ("object,slice,x1,y1,x2,y2\na,99,1,2,3,4\n", "slice 99 is out of range"),
        ("object,slice,x1,y1,x2,y2\na,5,1,2,300,1\n", "is reversed"),
        ("object,slice,x,y,label\na,5,1,2,7\n", "line 2: labels are 1 (inside) or 0 (outside)"),
        ("object,slice,i,j,k\na,5,1,2,3\n", "line 2: the slice follows from voxels"),
        ("object,i,j,k,x,y\na,1,2,3,4,5\n", "line 2: 'a' has prompts in several frames"),
        ("", "no prompts"),
        ("object,x,y\n", "no prompts"),
        ("[]", "no prompts"),
        ("{", "not JSON"),
        ('{"a": 1}', "not a list of prompts"),
        ('[{"object": "a", "slice": 5, "box": [1, 2, 3, 4], "color": "red"}]', "entry 1: unknown keys color"),
        ('[{"object": "a"}]', "entry 1: 'a' has no prompt"),
        ('[{"object": 5, "slice": 5, "box": [1, 2, 3, 4]}]', "entry 1: 'object' is the name"),
        ('[{"object": "a", "slice": true, "box": [1, 2, 3, 4]}]', "entry 1: 'slice'"),
        ('[{"object": "a", "slice": 5, "box": [1, 2, 3, 1e999]}]', "entry 1: a box is 4 numbers"),
        ('[{"object": "a", "slice": 5, "points": [[1, 2]], "labels": [true]}]', "entry 1: labels"),
    ],
)
def test_files_that_make_no_sense_are_one_line(run, source: Path, text: str, message: str) -> None:
    before = contents(source.parent.parent)
    done = run("--prompts", "-", stdin=text)
    assert done.exit_code in (1, 2) and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and contents(source.parent.parent) == before


def test_a_scan_without_orientation_has_no_millimeters(run, tmp_path: Path) -> None:
    scan = save_nifti(tmp_path / "in" / "lost.nii", brain_like(GRID))
    done = run("--mm-point", 1, 2, 3, scan=scan)
    assert done.exit_code == 1 and "doesn't say where its axes point" in done.stderr
    assert run("--voxel-point", *POINT, scan=scan).exit_code == 0


def test_a_picture_takes_pixels_from_a_file(run, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    picture = tmp_path / "in" / "picture.png"
    cv2.imwrite(str(picture), np.clip(brain_like((30, 34, 3))[:, :, 1] / 4, 0, 255).astype(np.uint8))
    done = run("--prompts", "-", stdin="object,x1,y1,x2,y2\na,8,6,26,25\n", scan=picture)
    assert done.exit_code == 0, done.stderr
    assert labels(tmp_path / "out", "picture").shape == (1, 30, 34)
    refused = run("--mm-point", 1, 2, 3, scan=picture, output="mm")
    assert refused.exit_code == 1 and "is a picture without millimeters" in refused.stderr
