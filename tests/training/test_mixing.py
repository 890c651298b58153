from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from segment_anything.modeling import Sam

from samri.errors import InputError
from samri_training.embedding_folders import refuse_mixed_splits, refuse_shared_cases
from samri_training.slices import split_named
from samri_training.store import EmbeddingStore
from samri_training.train import main
from tests.support.stores import drawn_slices, write_store

pytestmark = pytest.mark.slow  # Whole runs.


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "training"),
        ("Embedding_train", "training"),
        ("imagesTr", "training"),
        ("val", "validation"),
        ("Embeddings-Valid", "validation"),
        ("test", "testing"),
        ("labelsTs", "testing"),
        ("testing", "testing"),
        ("brain", None),
        ("contest", None),
        ("images", None),
    ],
)
def test_a_folder_is_known_by_the_usual_names_of_splits(folder: str, split: str | None) -> None:
    assert split_named(folder) == split


@pytest.fixture
def stores(tmp_path: Path, small_sam: Sam) -> Path:
    """Two stores in folders that other tools call so, of cases 0 to 3 both."""
    for name in ("Embedding_train", "Embedding_test"):
        write_store(tmp_path / "data" / name, small_sam, drawn_slices(4))
    return tmp_path / "data"


def test_several_splits_are_not_taken_as_one(stores: Path, checkpoint: Path, tmp_path: Path) -> None:
    options = ["--embedding-dir", stores, "--checkpoint", checkpoint, "--save-dir", tmp_path / "run", "--device", "cpu"]
    done = CliRunner().invoke(main, list(map(str, [*options, "--epochs", 1])))
    assert done.exit_code == 0, done.stderr
    run = json.loads((tmp_path / "run" / "args.json").read_text(encoding="utf-8"))
    assert run["data"]["samples"] + run["validation_samples"] == 4, "those of Embedding_test are left out"
    parts = [EmbeddingStore.open(stores / name) for name in ("Embedding_train", "Embedding_test")]
    with pytest.raises(InputError, match="Embedding_train, Embedding_test, which would be read as one set"):
        refuse_mixed_splits(stores, parts)
    refuse_mixed_splits(stores / "Embedding_train", [EmbeddingStore.open(stores / "Embedding_train")])


def test_cases_on_both_sides_are_refused_by_name_unless_insisted(
    stores: Path, checkpoint: Path, tmp_path: Path
) -> None:
    options = ["--embedding-dir", stores / "Embedding_train", "--val-embedding-dir", stores / "Embedding_test"]
    options += ["--checkpoint", checkpoint, "--save-dir", tmp_path / "run", "--device", "cpu", "--epochs", 1]
    done = CliRunner().invoke(main, list(map(str, options)))
    assert done.exit_code == 1
    (line,) = done.stderr.strip().splitlines()
    assert "4 case(s) are in the training and in the validation slices (case0, case1, case2 ...)" in line
    assert "--allow-shared-cases" in line
    done = CliRunner().invoke(main, list(map(str, [*options, "--allow-shared-cases"])))
    assert done.exit_code == 0, done.stderr


def test_two_datasets_in_one_folder_may_have_cases_of_one_name(tmp_path: Path, small_sam: Sam) -> None:
    made = {
        name: EmbeddingStore.open(write_store(tmp_path / name, small_sam, drawn_slices(2)))
        for name in ("a/training", "b/validation", "a/validation")
    }
    refuse_shared_cases([made["a/training"]], [made["b/validation"]], together=True)
    with pytest.raises(InputError, match="case0, case1"):
        refuse_shared_cases([made["a/training"]], [made["a/validation"]], together=True)


def test_a_store_of_another_image_size_than_the_checkpoint_is_refused(
    stores: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddingStore.open(stores / "Embedding_train")
    store.info = dataclasses.replace(store.info, image_size=129)
    monkeypatch.setattr("samri_training.published.EmbeddingStore.open", lambda folder: store)
    options = ["--embedding-dir", stores / "Embedding_train", "--checkpoint", checkpoint, "--device", "cpu"]
    done = CliRunner().invoke(main, list(map(str, [*options, "--save-dir", tmp_path / "run"])))
    assert done.exit_code == 1
    (line,) = done.stderr.strip().splitlines()
    assert "its image size is 129" in line and "has 128" in line and "is damaged" in line


def test_the_hint_for_many_tiny_structures(tmp_path: Path, small_sam: Sam) -> None:
    from samri.preprocessing import profile
    from samri_training.train import Settings
    from samri_training.train._data import fine_structure_hint
    from samri_training.train._samples import SamplingConfig

    slices = drawn_slices(2)
    ordinary = EmbeddingStore.open(write_store(tmp_path / "ordinary", small_sam, slices))
    tiny = []
    for each in slices:
        mask = np.zeros_like(each.mask)
        for row in range(8, 56, 12):
            mask[row : row + 4, 8:60:12] = 1
            mask[row : row + 4, 9:61:12] = 1
        tiny.append(dataclasses.replace(each, mask=mask))
    fine = EmbeddingStore.open(write_store(tmp_path / "fine", small_sam, tiny))
    settings = Settings()
    frame = SamplingConfig.of(profile("samri"), 128, (64, 16, 16), settings)
    assert fine_structure_hint(ordinary, range(2), frame, settings) is None
    hint = fine_structure_hint(fine, range(2), frame, settings)
    assert hint is not None and "--targets coverage --loss balanced" in hint and "20 connected components" in hint
    chosen = Settings(targets="coverage", loss="balanced")
    assert fine_structure_hint(fine, range(2), frame, chosen) is None
