"""Which weights a run keeps, and what it says at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam

from samri.preprocessing import profile
from samri_training.store import EmbeddingStore
from samri_training.train import Settings, train
from samri_training.train._samples import BatchRequest, SamplingConfig, TrainingBatches
from samri_training.train._validation import ValidationBatches, asked_with
from tests.support.stores import drawn_slices, write_store

pytestmark = pytest.mark.slow  # Whole runs.


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, small_sam: Sam) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    write_store(folder / "training", small_sam, drawn_slices(4))
    write_store(folder / "validation", small_sam, drawn_slices(2, seed=9))
    return folder


def settings_for(stores: Path, checkpoint: Path, folder: Path, **more: Any) -> Settings:
    return Settings(embedding_dir=stores, checkpoint=checkpoint, save_dir=folder, batch_size=4, device="cpu", **more)


def test_a_run_that_gains_nothing_keeps_the_starting_weights_and_says_so(
    stores: Path, checkpoint: Path, small_sam: Sam, tmp_path: Path
) -> None:
    said: list[str] = []
    outcome = train(settings_for(stores, checkpoint, tmp_path / "run", lr=1e-12, epochs=1), say=said.append)
    best = torch.load(tmp_path / "run" / "best.pth", weights_only=True)
    assert all(torch.equal(best[name], tensor) for name, tensor in small_sam.state_dict().items())
    assert outcome.best_epoch == 0 and outcome.best_dice == outcome.start_dice
    assert outcome.to_json()["improved"] is False
    assert said[-1].startswith("nothing was gained: no epoch did better")
    assert json.loads((tmp_path / "run" / "logs.json").read_text())["best_epoch"] == 0


def test_the_last_epoch_is_validated_whatever_the_interval(stores: Path, checkpoint: Path, tmp_path: Path) -> None:
    train(settings_for(stores, checkpoint, tmp_path / "run", epochs=3, val_every=2, lr=1e-3), say=lambda line: None)
    logs = json.loads((tmp_path / "run" / "logs.json").read_text())
    assert [entry["epoch"] for entry in logs["epochs"] if "val_dice" in entry] == [0, 2, 3]
    assert logs["validation_prompts"] == "boxes moved as in training"


@pytest.mark.parametrize("jitter", [True, False])
def test_validation_asks_as_training_does_and_the_same_in_every_epoch(stores: Path, jitter: bool) -> None:
    store = EmbeddingStore.open(stores / "validation")

    def corners(asked: Settings) -> torch.Tensor:
        frame = SamplingConfig.of(profile("samri"), 128, (64, 16, 16), asked)
        return ValidationBatches(store, range(2), frame)[[0, 1]].prompts.coords

    tight = corners(Settings(jitter=False))
    assert torch.equal(corners(Settings(jitter=jitter)), corners(Settings(jitter=jitter)))
    assert torch.equal(corners(Settings(jitter=jitter)), tight) is not jitter
    assert asked_with(Settings(jitter=False)) == "tight boxes"
    assert asked_with(Settings(prompts="mixed")) == "boxes moved as in training, each with a point"


def test_a_slice_gives_as_many_labels_as_asked(stores: Path) -> None:
    store = EmbeddingStore.open(stores / "training")

    def batch(labels: Any, index: int = 0) -> Any:
        frame = SamplingConfig.of(profile("samri"), 128, (64, 16, 16), Settings(labels_per_slice=labels))
        return TrainingBatches(store, frame)[BatchRequest(1, (index, 1))]

    one, both = batch(1), batch("all")
    assert (len(one.coords), len(both.coords)) == (2, 4)
    assert both.rows.tolist() == [0, 0, 1, 1]
    assert len(both.features) == 2
    # The first of a slice's labels is the one that it would have given alone.
    assert torch.equal(both.coords[0], one.coords[0]) and torch.equal(both.targets[0], one.targets[0])
    parts = list(both.chunks(3))
    assert [len(part.features) for part in parts] == [3, 1]
    assert torch.equal(parts[1].features[0], both.features[1])
    assert batch(5).rows.tolist() == [0, 0, 1, 1]
    assert not np.array_equal(both.targets[0], both.targets[1])


def test_a_run_on_all_labels_counts_each(stores: Path, checkpoint: Path, tmp_path: Path) -> None:
    settings = settings_for(stores, checkpoint, tmp_path / "run", epochs=1, labels_per_slice="all", val_every=0)
    train(settings, say=lambda line: None)
    assert json.loads((tmp_path / "run" / "logs.json").read_text())["epochs"][0]["samples"] == 8
