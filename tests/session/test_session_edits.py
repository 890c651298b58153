"""What each edit of a session does to its masks."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import samri
from samri.errors import InputError, PromptError
from samri.geometry import axis_view, plane_view
from samri.io import Scan, write_mask
from samri_runtime import Predictor
from samri_runtime.session import SlicePosition
from samri_runtime.session._strokes import points_in_lasso, points_on_scribble
from tests.support.scans import affine, save_nifti

BOX, OTHER = (11, 8, 39, 32), (20, 10, 36, 38)
OUTLINE = [(6, 6), (30, 6), (30, 34), (6, 34)]


@pytest.fixture
def session(scan: Scan, model: Predictor) -> samri.Session:
    return samri.Session(scan, model)


def test_a_box_gives_the_mask_of_segment(session: samri.Session, scan: Scan, model: Predictor) -> None:
    session.box("one", 7, BOX)
    expected = samri.segment(scan, model, slice=7, boxes=BOX)
    np.testing.assert_array_equal(session.label_map(), expected.label_map)
    assert session.objects[0].scores == {SlicePosition(7, axis=2): expected.scores[0]}


def test_prompts_of_a_slice_are_decoded_together(session: samri.Session, scan: Scan, model: Predictor) -> None:
    session.box("one", 7, OTHER)
    session.point("one", 7, (20, 20))
    session.negative_point("one", 7, (8, 8))
    session.box("one", 7, BOX)  # In place of the first.
    expected = samri.segment(scan, model, slice=7, boxes=BOX, points=[[20, 20], [8, 8]], point_labels=[1, 0])
    np.testing.assert_array_equal(session.label_map(), expected.label_map)


@pytest.mark.parametrize("candidate", [1, 2, 3])
def test_a_candidate_is_the_models_own(session: samri.Session, scan: Scan, model: Predictor, candidate: int) -> None:
    session.box("one", 7, BOX)
    session.choose("one", 7, candidate)
    expected = samri.segment(scan, model, slice=7, boxes=BOX, multimask=True)
    np.testing.assert_array_equal(session.label_map(), expected.label_maps()[candidate - 1])
    session.choose("one", 7, None)
    np.testing.assert_array_equal(session.label_map(), samri.segment(scan, model, slice=7, boxes=BOX).label_map)


def test_where_objects_overlap_the_higher_logit_wins(session: samri.Session, scan: Scan, model: Predictor) -> None:
    session.box("one", 7, BOX)
    session.box("two", 7, OTHER)
    slices = [model.predict(model.encode(scan.voxels[:, :, 7]), boxes=box).logits()[0] for box in (BOX, OTHER)]
    logits = np.stack([np.zeros_like(slices[0]), *slices])
    np.testing.assert_array_equal(session.label_map()[:, :, 7], logits.argmax(axis=0))
    np.testing.assert_array_equal(session.mask("one")[:, :, 7], slices[0] > 0)


def test_slices_of_a_plane_are_those_of_segment(scan: Scan, model: Predictor) -> None:
    session = samri.Session(scan, model, plane="coronal")
    session.box("one", 25, (5, 2, 30, 11))
    expected = samri.segment(scan, model, plane="coronal", slice=25, boxes=(5, 2, 30, 11))
    np.testing.assert_array_equal(session.label_map(), expected.label_map)


def test_a_slice_of_another_plane_replaces_what_crosses_it(session: samri.Session) -> None:
    session.box("one", 7, BOX)
    crossing = SlicePosition(20, plane="sagittal")
    session.box("one", crossing, (10, 2, 40, 11))
    session.clear("one", crossing)
    labels = session.label_map()
    assert not labels[20].any() and labels[:20, :, 7].any()


def test_propagation_fills_the_range_and_no_more(session: samri.Session) -> None:
    session.box("one", 6, BOX)
    done: list[int] = []
    session.propagate("one", (5, 8), on_slice=done.append)
    found = np.flatnonzero(session.label_map().any(axis=(0, 1)))
    assert set(done) == set(found.tolist()) == {5, 6, 7, 8}
    assert session.objects[0].ends.keys() == {1, -1}


def test_a_point_corrects_what_propagation_left(session: samri.Session) -> None:
    session.box("one", 6, BOX)
    session.propagate("one", (5, 8))
    before = session.mask("one")[:, :, 7].copy()
    session.point("one", 7, (44, 20))
    (drawn,) = [prompts for at, prompts in session.objects[0].prompts.items() if at.slice == 7]
    rows, columns = np.nonzero(before)
    assert drawn.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) and not drawn.drawn
    grown = drawn.prompt((40, 50)).box
    assert grown is not None
    np.testing.assert_array_equal(grown, [*drawn.box[:2], max(45, drawn.box[2]), max(21, drawn.box[3])])


def test_a_label_map_starts_a_session_and_yields_to_the_model(scan: Scan, model: Predictor, tmp_path: Path) -> None:
    labels = np.zeros(scan.grid, np.uint8)
    labels[5:30, 6:40, 3:9], labels[32:36, 2:9, 4] = 7, 300 - 256
    write_mask(tmp_path / "start.nii.gz", labels, scan)
    session = samri.Session(scan, model)
    session.start(tmp_path / "start.nii.gz", {7: "atlas", 44: "small"})
    np.testing.assert_array_equal(session.label_map(), labels)
    assert [(each.name, each.label) for each in session.objects] == [("atlas", 7), ("small", 44)]
    session.box("new", 7, BOX)
    found = session.mask("new")
    np.testing.assert_array_equal(session.label_map(), np.where(found, 45, labels))
    with pytest.raises(InputError, match="no label 9"):
        session.start(tmp_path / "start.nii.gz", {9: "nine"})


def test_a_label_map_from_elsewhere_is_refused(session: samri.Session, scan: Scan, tmp_path: Path) -> None:
    zeros = np.zeros(scan.grid, np.uint8)
    moved = save_nifti(tmp_path / "moved.nii", zeros, sform=affine(zooms=(1.0, 1.5, 2.0), offset=(3, 0, 0)))
    small = save_nifti(tmp_path / "small.nii", zeros[1:], sform=scan.affine)
    graded = save_nifti(tmp_path / "graded.nii", np.full(scan.grid, 0.5, np.float32), sform=scan.affine)
    for path, message in ((moved, "elsewhere in space"), (small, "has the shape"), (graded, "no label map")):
        with pytest.raises(InputError, match=message):
            session.start(path)
    assert session.edits == () and nib.load(moved).shape == scan.grid


def test_removed_objects_leave_the_labels_of_others(session: samri.Session) -> None:
    session.add("first", "#FF0000")
    session.box("second", 7, BOX)
    session.remove("first")
    assert [(each.label, each.name) for each in session.objects] == [(2, "second")]
    assert set(np.unique(session.label_map())) == {0, 2}
    session.clear("second")
    assert not session.label_map().any() and session.objects[0].prompts == {}


def test_strokes_are_points_where_they_were_drawn(session: samri.Session) -> None:
    session.lasso("one", 7, OUTLINE)
    session.scribble("one", 7, [(2, 2), (2, 30)], inside=False)
    (prompts,) = session.objects[0].prompts.values()
    assert prompts.box == (6, 6, 30, 34)
    inside = [(x, y) for x, y, label in prompts.points if label == 1]
    outside = [(x, y) for x, y, label in prompts.points if label == 0]
    assert len(inside) == 5 and all(6 < x < 30 and 6 < y < 34 for x, y in inside)
    assert outside == [(2, pytest.approx(2 + 28 * (k + 0.5) / 6)) for k in range(6)]


def test_points_in_a_lasso_are_deep_inside_and_far_apart() -> None:
    points = points_in_lasso([(10, 10), (50, 10), (50, 30), (10, 30)], (60, 60))
    assert points[0][1] == 20
    assert all(10 + 5 <= x <= 50 - 5 and 10 + 5 <= y <= 30 - 5 for x, y in points)
    apart = np.hypot(*(points[:, None] - points[None]).T) + 99 * np.eye(len(points))
    assert apart.min() >= 8
    # A ring drawn as one line: its hole isn't inside.
    ring = [(0, 0), (40, 0), (40, 40), (0, 40), (0, 0), (15, 15), (15, 25), (25, 25), (25, 15), (15, 15)]
    assert not any(15 < x < 25 and 15 < y < 25 for x, y in points_in_lasso(ring, (60, 60)))
    np.testing.assert_allclose(points_in_lasso([(3.2, 3.2), (3.6, 3.2), (3.4, 3.6)], (9, 9)), [[3.4, 10 / 3]])
    assert len(points_in_lasso([(0, 0), (4000, 0), (4000, 4000), (0, 4000)], (4096, 4096))) == 5
    np.testing.assert_array_equal(points_on_scribble([(4, 5), (4, 5)]), [[4, 5]])


@pytest.mark.parametrize(
    ("method", "arguments", "error", "message"),
    [
        ("box", ("one", 7, (5, 6, 5, 40)), PromptError, "has no area"),
        ("box", ("one", 7, (5, 6, float("nan"), 40)), PromptError, "finite"),
        ("box", ("one", 7, (5, 6, 7)), PromptError, "4 finite numbers"),
        ("box", ("one", 12, BOX), InputError, "slice 12 is out of range"),
        ("box", ("one", None, BOX), InputError, "give the number of a slice"),
        ("box", (" ", 7, BOX), InputError, "the name of an object"),
        ("point", ("one", 7, (50, 2)), PromptError, "outside the image"),
        ("lasso", ("one", 7, [(1, 1), (2, 2)]), PromptError, "vertices"),
        ("lasso", ("one", 7, [(900, 900), (950, 900), (950, 950)]), PromptError, "outside the image"),
        ("choose", ("held", 3, 2), PromptError, "no prompt"),
        ("choose", ("held", 7, 4), InputError, "candidates"),
        ("propagate", ("held", (8, 9)), PromptError, "misses slice 7"),
        ("propagate", ("held", (5, 99)), PromptError, "no range"),
        ("propagate", ("empty",), PromptError, "'empty' has no prompt"),
        ("propagate", (("held", "nobody"),), InputError, "no object 'nobody'"),
        ("propagate", ("crossed",), PromptError, "different planes"),
        ("remove", ("nobody",), InputError, "no object 'nobody'"),
        ("clear", ("nobody",), InputError, "no object 'nobody'"),
        ("add", ("held",), InputError, "already"),
        ("add", ("new", "red"), InputError, "six digits"),
    ],
)
def test_what_makes_no_sense_changes_nothing(
    session: samri.Session, method: str, arguments: tuple, error: type[Exception], message: str
) -> None:
    session.box("held", 7, BOX)
    session.add("empty")
    session.box("crossed", 7, OTHER)
    session.point("crossed", SlicePosition(20, axis=0), (5, 20))
    edits, labels = session.edits, session.label_map()
    with pytest.raises(error, match=message) as raised:
        getattr(session, method)(*arguments)
    assert "\n" not in str(raised.value)
    assert session.edits == edits
    np.testing.assert_array_equal(session.label_map(), labels)


def test_a_picture_has_one_slice(model: Predictor, tmp_path: Path) -> None:
    flat = samri.read_scan(
        save_nifti(tmp_path / "flat.nii", np.eye(40, 50, dtype=np.int16)[..., None], sform=np.eye(4))
    )
    session = samri.Session(flat, model)
    session.box("one", None, BOX)
    assert session.label_map().shape == flat.grid
    with pytest.raises(InputError, match="is one slice"):
        session.box("one", 1, BOX)
    with pytest.raises(InputError, match="one slice"):
        session.propagate("one")


def test_the_embedding_of_the_current_slice_stays_in_memory(scan: Scan) -> None:
    with samri.load_model("samri-tiny", provider="cpu") as uncached:
        session = samri.Session(scan, uncached)
        for _ in range(3):
            session.point("one", 7, (20, 20))
        session.point("two", 7, (10, 20))
        assert session.encoded == 1
        session.point("two", 8, (10, 20))
        session.point("two", 7, (11, 20))
        assert session.encoded == 3


def test_slices_of_an_object_are_those_of_its_volume(session: samri.Session, scan: Scan) -> None:
    session.box("one", 7, BOX)
    session.point("one", SlicePosition(6, plane="axial"), (25, 20))
    (one,) = session.objects
    for view in (
        axis_view(scan.grid, 2, 7),
        plane_view(scan.grid, scan.affine, "axial", 7),
        axis_view(scan.grid, 0, 20),
    ):
        np.testing.assert_array_equal(one.slice_mask(view), view.extract(session.mask("one")))
    np.testing.assert_array_equal(session.label_map() > 0, session.mask("one"))
