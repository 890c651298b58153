"""Validation: Dice of each label at the slice's own size, as inference computes masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from samri.errors import SamriError
from samri.metrics import dice, iou
from samri.model import SamDecoder
from samri.postprocessing import upscale_logits
from samri_training.prompting import sample_prompt
from samri_training.slices import SliceSource
from samri_training.store import EmbeddedSlice
from samri_training.train._loss import mask_losses
from samri_training.train._processes import Processes
from samri_training.train._samples import SamplingConfig, TrainingBatch, assembled, empty_batch, labels_of, prompt_kind
from samri_training.train._settings import Settings
from samri_training.train._step import TrainingError, autocast
from samri_training.train._targets import low_res_target


@dataclass(frozen=True)
class Validation:
    """Means over all labels of all slices."""

    dice: float
    """At the slice's own size, logits above 0, as inference computes masks; an empty prediction counts as 0."""
    loss: float
    """The training loss of mask 0, without labels that vanish at low resolution."""
    score_error: float
    """|predicted IoU - real IoU|."""
    masks: int


class ValidationBatch(NamedTuple):
    """Some slices, and a prompt for each label in each of them."""

    prompts: TrainingBatch
    """Features are per slice, (n, C, G, G); everything else is per prompt."""
    rows: Tensor
    """(B,) int64: which of the n slices a prompt belongs to."""
    label_values: list[int]
    """(B,) label of each prompt in its label map."""
    maps: list[npt.NDArray[Any]]
    """n label maps, (H, W) each."""
    samples: list[int]
    """n places in the list of validation slices."""


def asked_with(settings: Settings) -> str:
    """Description of the validation prompts: the same kinds as in training."""
    boxes = "boxes moved as in training" if settings.jitter else "tight boxes"
    return {
        "box": boxes,
        "point": "points",
        "mixed": f"{boxes}, each with a point",
        "alternate": f"{boxes} and points by turns",
    }[settings.prompts]


class ValidationBatches(Dataset[ValidationBatch]):
    """All labels of some slices, asked as in training, with the same prompts in every epoch."""

    def __init__(self, source: SliceSource[EmbeddedSlice], samples: Sequence[int], config: SamplingConfig) -> None:
        self._source = source
        self._samples = samples
        self._config = config

    def __getitem__(self, places: Sequence[int]) -> ValidationBatch:
        features, maps = [], []
        rows: list[int] = []
        label_values: list[int] = []
        prompts, targets, shapes = [], [], []
        config = self._config
        for row, place in enumerate(places):
            index = self._samples[place]
            try:
                stored = self._source[index]
            except SamriError as error:
                failure = empty_batch(config)._replace(failure=str(error))
                return ValidationBatch(failure, torch.zeros(0, dtype=torch.int64), [], [], [])
            features.append(stored.features)
            label_map = config.structures(stored.mask)
            maps.append(label_map)
            for label in labels_of(label_map).tolist():
                mask = label_map == label
                # Epoch 0: none of the training's, which count from 1.
                rng = np.random.default_rng([config.seed, 0, index, label])
                prompts.append(sample_prompt(mask, prompt_kind(config.prompts, 0, index), rng, config.jitter))
                targets.append(low_res_target(mask, config.profile, config.image_size, config.low_res, config.targets))
                shapes.append((mask.shape[0], mask.shape[1]))
                rows.append(row)
                label_values.append(label)
        batch = assembled([features[row] for row in rows[:1]], prompts, targets, shapes, config)
        batch = batch._replace(features=torch.from_numpy(np.stack(features)))
        return ValidationBatch(batch, torch.tensor(rows, dtype=torch.int64), label_values, maps, list(places))


class ValidationBatchRequests(Sampler[list[int]]):
    """This process's share of the validation slices, some at a time."""

    def __init__(self, samples: int, batch_size: int, rank: int, processes: int) -> None:
        mine = list(range(rank, samples, processes))
        self._requests = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._requests)


@torch.no_grad()
def validate(
    decoder: SamDecoder,
    batches: Iterable[ValidationBatch],
    samples: int,
    config: SamplingConfig,
    settings: Settings,
    processes: Processes,
) -> Validation:
    """Measure the decoder on all processes' batches; every process gets the same answer, whatever their number.

    Raises:
        TrainingError: The store could not be read, or it holds no label at all.
        StoppedWithOthersError: Either was so in another process.
    """
    dtype = torch.float64 if processes.device.type != "mps" else torch.float32
    # One row per slice, so that the order of summing, and with it the last digit, does not depend on the processes.
    sums = torch.zeros(samples, 5, dtype=dtype)

    def measure_all() -> None:
        for batch in batches:
            if batch.prompts.failure:
                raise TrainingError(batch.prompts.failure)
            for row, sample_sums in zip(
                batch.rows.tolist(), _measured(decoder, batch, config, settings, processes), strict=True
            ):
                sums[batch.samples[row]] += torch.tensor(sample_sums, dtype=dtype)

    processes.agree(measure_all)
    everywhere = sums.to(processes.device)
    processes.sum(everywhere)
    masks, dices, errors, losses, loss = everywhere.sum(0).tolist()
    if not masks:
        raise TrainingError("the validation slices hold no label at all: give others with --val-embedding-dir")
    return Validation(dices / masks, loss / max(losses, 1.0), errors / masks, int(masks))


def _measured(
    decoder: SamDecoder, batch: ValidationBatch, config: SamplingConfig, settings: Settings, processes: Processes
) -> Iterator[tuple[float, float, float, float, float]]:
    """For each prompt: 1, its Dice, its score's error, 1 if it has a loss, and that."""
    weights = decoder.mask_decoder.iou_token.weight
    features = batch.prompts.features.to(processes.device).to(weights.dtype)
    for start in range(0, len(batch.label_values), settings.batch_size):
        chunk = slice(start, start + settings.batch_size)
        coords, labels, targets = (
            tensor[chunk].to(processes.device)
            for tensor in (batch.prompts.coords, batch.prompts.labels, batch.prompts.targets)
        )
        with autocast(settings, processes.device):
            logits, scores = decoder(
                features[batch.rows[chunk].to(processes.device)], coords.to(weights.dtype), labels.to(weights.dtype)
            )
        losses = mask_losses(logits[:, :1], targets, settings.loss)[:, 0].tolist()
        has_target = targets.flatten(1).any(1).tolist()
        low_res = logits[:, 0].float().cpu().numpy()
        for at, (row, label, score) in enumerate(
            zip(batch.rows[chunk].tolist(), batch.label_values[chunk], scores[:, 0].tolist(), strict=True)
        ):
            truth = batch.maps[row] == label
            shape = (truth.shape[0], truth.shape[1])
            mask = upscale_logits(low_res[at], shape, config.profile, config.image_size) > 0
            error = abs(score - iou(mask, truth))
            yield 1.0, dice(mask, truth), error, float(has_target[at]), losses[at] if has_target[at] else 0.0
