from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam

from samri.preprocessing import profile
from samri_training.store import EmbeddingStore
from samri_training.train import Settings
from samri_training.train._samples import (
    BatchRequest,
    BatchRequests,
    SamplingConfig,
    TrainingBatch,
    TrainingBatches,
    loader,
)
from samri_training.train._validation import ValidationBatches
from tests.support.stores import DrawnSlice, drawn_slices, write_store

FRAME = SamplingConfig.of(profile("samri"), 128, (64, 16, 16), Settings(prompts="mixed"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, small_sam: Sam) -> EmbeddingStore:
    return EmbeddingStore.open(write_store(tmp_path_factory.mktemp("stores") / "store", small_sam, drawn_slices(10)))


def same(one: TrainingBatch, other: TrainingBatch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_sample_does_not_depend_on_its_company(store: EmbeddingStore) -> None:
    batches = TrainingBatches(store, FRAME)
    together = batches[BatchRequest(3, (7, 2, 5))]
    for row, index in enumerate((7, 2, 5)):
        alone = batches[BatchRequest(3, (index,))]
        assert all(torch.equal(a[row], b[0]) for a, b in zip(together[:4], alone[:4], strict=True))


def test_prompts_differ_from_epoch_to_epoch_and_seed_to_seed(store: EmbeddingStore) -> None:
    first = TrainingBatches(store, FRAME)[BatchRequest(1, (0, 1, 2))]
    assert not same(first, TrainingBatches(store, FRAME)[BatchRequest(2, (0, 1, 2))])
    other = SamplingConfig.of(profile("samri"), 128, (64, 16, 16), Settings(prompts="mixed", seed=1))
    assert not same(first, TrainingBatches(store, other)[BatchRequest(1, (0, 1, 2))])


def test_a_box_is_scaled_as_inference_scales_it(store: EmbeddingStore) -> None:
    frame = SamplingConfig.of(profile("samri"), 128, (64, 16, 16), Settings(jitter=False))
    batch = TrainingBatches(store, frame)[BatchRequest(1, (1,))]
    mask = store[1].mask  # 120 x 80 -> 128 x 85
    corners = []
    for label in (1, 2):
        rows, columns = np.nonzero(mask == label)
        corners.append([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
    wanted = np.array(corners) * [85 / 80, 128 / 120]
    assert batch.labels.tolist() == [[2, 3]]
    assert min(np.abs(batch.coords[0].numpy() - box).max() for box in wanted) < 1e-4


def test_the_target_lies_in_its_own_box(store: EmbeddingStore) -> None:
    frame = SamplingConfig.of(profile("samri"), 128, (64, 16, 16), Settings(jitter=False))
    for index in range(len(store)):
        batch = TrainingBatches(store, frame)[BatchRequest(1, (index,))]
        rows, columns = np.nonzero(batch.targets[0, 0].numpy())
        (left, top), (right, bottom) = batch.coords[0].numpy() / 2  # 128 pixels of the model, 64 of the logits.
        assert abs(left - columns.min()) <= 1 and abs(right - columns.max() - 1) <= 1
        assert abs(top - rows.min()) <= 1 and abs(bottom - rows.max() - 1) <= 1


def test_alternating_prompts_give_each_slice_a_box_and_then_a_point(store: EmbeddingStore) -> None:
    frame = SamplingConfig.of(profile("samri"), 128, (64, 16, 16), Settings(prompts="alternate"))
    one, two = (TrainingBatches(store, frame)[BatchRequest(epoch, (0, 1))].labels.tolist() for epoch in (1, 2))
    assert one == [[1, -1], [2, 3]]
    assert two == [[2, 3], [1, -1]]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_sample_is_dealt_out_once_an_epoch_in_steps_of_all_processes(processes: int) -> None:
    settings = Settings(batch_size=3, accumulate=2, seed=5)
    dealt: list[list[BatchRequest]] = []
    for rank in range(processes):
        requests = BatchRequests(range(41), settings, rank, processes)
        requests.epoch = 4
        dealt.append(list(requests))
    assert len({len(mine) for mine in dealt}) == 1
    seen = sorted(index for mine in dealt for request in mine for index in request.indices)
    assert seen == list(range(41))


def test_the_samples_of_a_step_do_not_depend_on_how_many_processes_share_it() -> None:
    def steps(processes: int, batch_size: int, accumulate: int) -> list[set[int]]:
        settings = Settings(batch_size=batch_size, accumulate=accumulate)
        parts = [list(BatchRequests(range(50), settings, rank, processes)) for rank in range(processes)]
        return [
            {index for part in parts for request in part[at : at + accumulate] for index in request.indices}
            for at in range(0, len(parts[0]), accumulate)
        ]

    assert steps(1, 12, 1) == steps(2, 6, 1) == steps(2, 3, 2) == steps(4, 1, 3)


def test_epochs_have_their_own_order() -> None:
    requests = BatchRequests(range(30), Settings(batch_size=30), 0, 1)
    (first,) = requests
    requests.epoch = 2
    (second,) = requests
    assert first.indices != second.indices


class Slices:
    """A source in memory: label maps, and features that don't matter."""

    def __init__(self, *masks: np.ndarray[Any, Any]) -> None:
        self._masks = masks

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self):
            raise IndexError(index)
        mask = self._masks[index]
        return DrawnStored(np.zeros((64, 16, 16), np.float16), mask)


class DrawnStored:
    def __init__(self, features: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> None:
        self.features, self.mask = features, mask


def test_slices_without_a_usable_label_are_left_out_and_counted() -> None:
    thin = np.zeros((1024, 1024), np.uint8)
    thin[:, 500] = 3
    both = thin.copy()
    both[100:300, 100:300] = 1
    empty = np.zeros((1024, 1024), np.uint8)
    batch = TrainingBatches(Slices(thin, both, empty), FRAME)[BatchRequest(1, (0, 1, 2))]
    assert (len(batch.features), batch.vanished, batch.empty) == (1, 1, 1)


def test_a_label_that_vanishes_is_replaced_by_another_and_counted() -> None:
    mask = np.zeros((1024, 1024), np.uint8)
    mask[100:300, 100:300] = 1
    mask[:, 700] = 2
    batches = TrainingBatches(Slices(mask), FRAME)
    drawn = [batches[BatchRequest(epoch, (0,))] for epoch in range(1, 21)]
    assert all(len(batch.features) == 1 for batch in drawn)
    assert 3 < sum(batch.relabelled for batch in drawn) < 17


def test_nothing_usable_makes_an_empty_batch_of_the_right_shapes() -> None:
    batch = TrainingBatches(Slices(np.zeros((50, 50), np.uint8)), FRAME)[BatchRequest(1, (0,))]
    assert batch.features.shape == (0, 64, 16, 16)
    assert batch.targets.shape == (0, 1, 64, 64)


def test_a_damaged_shard_is_reported_by_name_and_not_raised(tmp_path: Path, small_sam: Sam) -> None:
    folder = write_store(tmp_path / "store", small_sam, drawn_slices(3))
    (shard,) = folder.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    for at in range(20_000, 90_000, 500):
        content[at] ^= 255
    shard.write_bytes(content)
    batch = TrainingBatches(EmbeddingStore.open(folder), FRAME)[BatchRequest(1, (0, 1, 2))]
    assert shard.name in batch.failure
    assert len(batch.features) == 0


@pytest.mark.slow
def test_loading_processes_make_the_same_batches(store: EmbeddingStore) -> None:
    def epoch(workers: int) -> list[TrainingBatch]:
        requests = BatchRequests(range(10), Settings(batch_size=4), 0, 1)
        return list(loader(TrainingBatches(store, FRAME), requests, workers, torch.device("cpu")))

    assert all(same(one, two) for one, two in zip(epoch(0), epoch(2), strict=True))


def test_drawn_slices_hold_two_labels() -> None:
    slices: list[DrawnSlice] = drawn_slices(4)
    assert all(set(np.unique(each.mask)) == {0, 1, 2} for each in slices)


class TwoKnees:
    """One slice with a label in two places, and a speck of it."""

    def __init__(self) -> None:
        self.features = np.zeros((64, 16, 16), np.float32)
        self.mask = np.zeros((128, 128), np.uint16)
        self.mask[10:40, 5:35] = self.mask[60:110, 80:120] = 4
        self.mask[120:123, 2:5] = 4

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> TwoKnees:
        return self


def boxes(coords: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row.flatten().tolist()) for row in coords}


def test_connected_parts_are_asked_about_one_by_one() -> None:
    settings = Settings(jitter=False, connected_parts=20, labels_per_slice="all")
    frame = SamplingConfig.of(profile("samri"), 128, (64, 16, 16), settings)
    knees = {(5.0, 10.0, 35.0, 40.0), (80.0, 60.0, 120.0, 110.0)}
    training = TrainingBatches(TwoKnees(), frame)[BatchRequest(1, (0,))]
    assert boxes(training.coords) == knees
    validation = ValidationBatches(TwoKnees(), [0], frame)[[0]]
    assert boxes(validation.prompts.coords) == knees
    areas = {int((validation.maps[0] == value).sum()) for value in validation.label_values}
    assert areas == {30 * 30, 50 * 40}
    whole = SamplingConfig.of(profile("samri"), 128, (64, 16, 16), Settings(jitter=False))
    assert boxes(TrainingBatches(TwoKnees(), whole)[BatchRequest(1, (0,))].coords) == {(2.0, 10.0, 120.0, 123.0)}
