"""Pairs by name in the layouts that datasets come in, and who goes into which split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samri.errors import InputError
from samri_training.prepare._patients import divide, keep_given, read_split_files
from samri_training.prepare._sources import SourcePair, check_pattern, find_sources
from tests.support.examples import examples


def touch(folder: Path, *names: str) -> Path:
    """Names alone decide; nothing is read."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def matched(folder: Path, **options) -> dict[str, tuple[str, str, str]]:
    return {
        pair.case: (pair.patient, str(pair.image.relative_to(folder)), str(pair.mask.relative_to(folder)))
        for pair in find_sources(folder, **options).pairs
    }


def pairs_of(*patients: str) -> list[SourcePair]:
    return [
        SourcePair(f"{patient}_{scan}", patient, Path(f"{patient}_{scan}.nii"), Path("m.nii"))
        for patient in patients
        for scan in ("a", "b")
    ]


def test_img_and_seg_volumes_keep_what_stands_behind(tmp_path):
    touch(tmp_path, "x/p1_img_T1.nii.gz", "x/p1_seg_T1.nii", "p2_img.nii.gz", "p2_seg.nii.gz", "p3_img_.nii.gz")
    found = find_sources(tmp_path)
    assert found.layout == "img-seg"
    assert [(pair.case, pair.tail, pair.patient) for pair in found.pairs] == [("p2", "", "p2"), ("x_p1", "T1", "x/p1")]
    assert [Path(item.what).name for item in found.left_out] == ["p3_img_.nii.gz"]


def test_nnunet_cases_take_their_first_channel(tmp_path):
    touch(tmp_path, "imagesTr/a_0001.nii.gz", "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz")
    touch(tmp_path, "labelsTr/a.nii.gz", "imagesTs/c_0000.nii.gz", "imagesTr/._a_0000.nii.gz")
    found = find_sources(tmp_path)
    assert found.layout == "nnunet"
    assert [pair.image.name for pair in found.pairs] == ["a_0000.nii.gz"]
    reasons = {Path(item.what).name: item.why for item in found.left_out}
    assert reasons.keys() == {"a_0001.nii.gz", "b_0000.nii.gz", "imagesTs"}
    assert "another channel" in reasons["a_0001.nii.gz"]
    assert matched(tmp_path, images="*_0001.nii.gz") == {"a": ("a", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")}


def test_the_decathlon_names_image_and_label_alike(tmp_path):
    touch(tmp_path, "imagesTr/prostate_0000.nii.gz", "labelsTr/prostate_0000.nii.gz")
    assert matched(tmp_path)["prostate_0000"][1:] == ("imagesTr/prostate_0000.nii.gz", "labelsTr/prostate_0000.nii.gz")


def test_nnunet_test_labels_make_the_testing_split(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz", "labelsTs/b.nii.gz")
    assert [(pair.case, pair.split) for pair in find_sources(tmp_path).pairs] == [("a", None), ("b", "testing")]


def test_a_bids_mask_finds_its_raw_image_by_its_entities(tmp_path):
    touch(tmp_path, "dataset_description.json")
    touch(tmp_path, *(f"sub-0{n}/ses-{s}/anat/sub-0{n}_ses-{s}_acq-hi_T1w.nii.gz" for n in (1, 2) for s in (1, 2)))
    touch(tmp_path, *(f"sub-0{n}/ses-{s}/anat/sub-0{n}_ses-{s}_T1w.nii.gz" for n in (1, 2) for s in (1, 2)))
    mask = "derivatives/manual/sub-02/ses-1/anat/sub-02_ses-1_acq-hi_space-orig_desc-manual_dseg.nii.gz"
    touch(tmp_path, mask)
    image = "sub-02/ses-1/anat/sub-02_ses-1_acq-hi_T1w.nii.gz"
    assert matched(tmp_path) == {"sub-02_ses-1_acq-hi_T1w": ("sub-02", image, mask)}


def test_a_bids_mask_prefers_the_image_of_its_own_derivative(tmp_path):
    raw, anat = "sub-01/anat/sub-01_T1w.nii.gz", "derivatives/prep/sub-01/anat/sub-01"
    touch(tmp_path, raw, f"{anat}_desc-preproc_T1w.nii.gz", f"{anat}_dseg.nii.gz", f"{anat}_label-GM_probseg.nii.gz")
    touch(tmp_path, f"{anat}_space-MNI_desc-preproc_T1w.nii.gz")
    assert [image for _, image, _ in matched(tmp_path).values()] == [f"{anat}_desc-preproc_T1w.nii.gz"]


def test_a_bids_mask_named_after_its_whole_image_is_understood(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz")
    touch(tmp_path, "derivatives/labels/sub-01/anat/sub-01_T2w_lesion-manual.nii.gz")
    assert [image for _, image, _ in matched(tmp_path).values()] == ["sub-01/anat/sub-01_T2w.nii.gz"]


def test_bids_names_that_do_not_decide_are_not_guessed(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz")
    touch(tmp_path, "derivatives/manual/sub-01/anat/sub-01_desc-a_dseg.nii.gz")
    with pytest.raises(InputError, match=r"fits several images.*--images '\*_T1w\.nii\.gz'"):
        find_sources(tmp_path)
    touch(tmp_path, "derivatives/manual/sub-01/anat/sub-01_desc-b_dseg.nii.gz")
    with pytest.raises(InputError, match=r"has several masks.*--masks"):
        find_sources(tmp_path, images="*_T1w.nii.gz")
    assert len(matched(tmp_path, images="*_T1w.nii.gz", masks="*_desc-b_*")) == 1


def test_a_pattern_matches_placeholders(tmp_path):
    touch(tmp_path, "p1/s1.nii.gz", "p1/s1_gt.nii.gz", "p1/s2.nii.gz", "p2/s1.nii.gz", "p2/s1_gt.nii.gz")
    found = find_sources(tmp_path, pattern=("{patient}/{scan}.nii.gz", "{patient}/{scan}_gt.nii.gz"))
    assert [(pair.case, pair.patient, pair.mask.name) for pair in found.pairs] == [
        ("p1_s1", "p1", "s1_gt.nii.gz"),
        ("p2_s1", "p2", "s1_gt.nii.gz"),
    ]
    assert [Path(item.what).name for item in found.left_out] == ["s2.nii.gz"]


def test_a_pattern_takes_dots_and_brackets_as_they_are(tmp_path):
    touch(tmp_path, "a.(1)/a.nii", "a.(1)/a+m.nii", "b.(1)/c.nii", "b.(1)/cxm.nii")
    assert list(matched(tmp_path, pattern=("{case}.(1)/{case}.nii", "{case}.(1)/{case}+m.nii"))) == ["a"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (("a.nii", "b.nii"), "needs a placeholder"),
        (("{case}.nii", "{patient}.nii"), "same placeholders"),
        (("{1}.nii", "{1}.nii"), "begins with a letter"),
    ],
)
def test_a_pattern_that_cannot_match_is_explained(pattern, words):
    assert words in str(check_pattern(pattern))


def test_two_sources_of_one_name_are_not_written_over_each_other(tmp_path):
    touch(tmp_path, "a/b_img_0.nii", "a/b_seg_0.nii", "a_b_img_0.nii", "a_b_seg_0.nii")
    with pytest.raises(InputError, match="would both be written as a_b_0"):
        find_sources(tmp_path)


def test_a_folder_without_pairs_says_how_to_name_them(tmp_path):
    touch(tmp_path, "one.nii.gz", "two.nii.gz")
    with pytest.raises(InputError, match=r"holds no pairs.*--pattern"):
        find_sources(tmp_path)


def test_the_patient_is_found_by_an_expression(tmp_path):
    touch(tmp_path, *(f"pat{n}_day{d}_{role}_.nii" for n in (1, 2) for d in (1, 2) for role in ("img", "seg")))
    found = find_sources(tmp_path, patient=r"^(pat\d+)_")
    assert [pair.patient for pair in found.pairs] == ["pat1", "pat1", "pat2", "pat2"]
    with pytest.raises(InputError, match="finds no patient in the name pat1_day1"):
        find_sources(tmp_path, patient=r"^(sub\d+)")


@settings(max_examples=examples(200))
@given(
    count=st.integers(1, 60),
    shares=st.tuples(*[st.floats(0, 10, width=16)] * 3).filter(lambda shares: sum(shares) > 0.01),
    seed=st.integers(0, 1000),
)
def test_every_patient_is_in_one_split_in_the_asked_proportions(count, shares, seed):
    patients = [f"p{n}" for n in range(count)]
    asked = sum(share > 0 for share in shares)
    if count < asked:
        with pytest.raises(InputError, match="too few to divide"):
            divide(patients, shares, seed)
        return
    split_of = divide(patients, shares, seed)
    assert split_of.keys() == set(patients)
    assert divide(patients[::-1], shares, seed) == split_of
    counts = Counter(split_of.values())
    for split, share in zip(("training", "validation", "testing"), shares, strict=True):
        exact = count * share / sum(shares)
        assert (counts[split] > 0) == (share > 0)
        assert abs(counts[split] - exact) < 2 or counts[split] == 1


def test_another_seed_divides_otherwise():
    patients = [f"p{n}" for n in range(30)]
    assert divide(patients, (8, 1, 1), 0) != divide(patients, (8, 1, 1), 1)


def test_one_patient_cannot_be_divided():
    with pytest.raises(InputError, match=r"one patient \(anna\), too few to divide .*--ratios 1 0 0"):
        divide(["anna"], (0.8, 0.1, 0.1), 0)
    assert divide(["anna"], (1, 0, 0), 0) == {"anna": "training"}


def test_a_given_division_is_kept_and_the_rest_divided_among_the_others():
    given_pair = SourcePair("t", "t", Path("t.nii"), Path("m.nii"), split="testing")
    chosen = keep_given([given_pair, *pairs_of("a", "b", "c", "d")], (0.8, 0.1, 0.1), 0)
    assert chosen["t"] == "testing"
    assert Counter(chosen.values()) == {"training": 3, "validation": 1, "testing": 1}


def test_a_patient_on_both_sides_of_a_given_division_is_refused():
    pairs = [SourcePair("a_1", "a", Path("x.nii"), Path("m.nii"), split=split) for split in ("training", "testing")]
    with pytest.raises(InputError, match="patient a, who is also in training"):
        keep_given(pairs, (0.8, 0.1, 0.1), 0)


def test_split_files_name_patients_or_cases(tmp_path):
    (tmp_path / "train.txt").write_text("\ufeffa\n\n# the control group\nb_a  # b's first scan\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("c\n")
    chosen, left_out = read_split_files(tmp_path, pairs_of("a", "b", "c", "d"))
    assert chosen == {"a": "training", "b": "training", "c": "testing"}
    assert [(item.what, "patient d is in no file" in item.why) for item in left_out] == [
        ("d_a.nii", True),
        ("d_b.nii", True),
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train.txt": "a", "val.txt": "a"}, r"val\.txt puts a into validation, but train\.txt has the same patient"),
        (
            {"train.txt": "a_a", "test.txt": "a_b"},
            r"test\.txt puts a_b into testing, but train\.txt has the same patie",
        ),
        ({"train.txt": "nobody"}, r"train\.txt names nobody, but no pair"),
        ({"training.txt": "a"}, r"holds none of train\.txt, val\.txt, test\.txt"),
        ({"train.txt": "\udce9"}, r"train\.txt is not a text file in UTF-8"),
    ],
)
def test_split_files_that_make_no_sense_are_refused(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=words):
        read_split_files(tmp_path, pairs_of("a", "b"))
