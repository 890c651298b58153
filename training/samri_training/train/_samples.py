"""Training batches: embeddings of slices, with targets and prompts for their labels.

Everything random about a sample comes from a generator keyed by (seed, epoch, sample), so that a batch is the same
whichever process, and whichever number of them, makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from samri.errors import SamriError
from samri.preprocessing import Profile
from samri.prompts import Prompt, to_batch, to_model_frame
from samri_training.prompting import PromptKind, sample_prompt
from samri_training.slices import SliceSource
from samri_training.store import EmbeddedSlice
from samri_training.train._settings import LabelsPerSlice, Settings, Targets, TrainingPrompts
from samri_training.train._targets import LowRes, connected_parts, low_res_target


@dataclass(frozen=True)
class SamplingConfig:
    """How samples are made of slices: their place in the model's input, prompts, targets and seed."""

    profile: Profile
    image_size: int
    embedding_shape: tuple[int, int, int]
    """(C, G, G)."""
    prompts: TrainingPrompts
    jitter: bool
    targets: Targets
    seed: int
    labels_per_slice: LabelsPerSlice = 1
    connected_parts: int = 0

    @classmethod
    def of(
        cls, profile: Profile, image_size: int, embedding_shape: tuple[int, int, int], settings: Settings
    ) -> SamplingConfig:
        """The configuration for a store's profile and shapes with the prompts and targets that the settings ask for."""
        return cls(
            profile,
            image_size,
            embedding_shape,
            settings.prompts,
            settings.jitter,
            settings.targets,
            settings.seed,
            settings.labels_per_slice,
            settings.connected_parts,
        )

    @property
    def low_res(self) -> int:
        """L: side of the decoder's logits."""
        return 4 * self.embedding_shape[1]

    def structures(self, mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(H, W) label map of what is asked about: the labels themselves, or their connected parts."""
        return connected_parts(mask, self.connected_parts) if self.connected_parts else mask


class TrainingBatch(NamedTuple):
    """B samples, and why others are not among them."""

    features: Tensor
    """(B, C, G, G), as stored; with `rows`, one per slice."""
    coords: Tensor
    """(B, N, 2) float32, (x, y) in the S x S model frame."""
    labels: Tensor
    """(B, N) float32, as `samri.prompts.to_batch` defines them."""
    targets: Tensor
    """(B, 1, L, L) bool."""
    rows: Tensor | None = None
    """(B,) int64: the row of `features` that a sample belongs to; None where slices have one sample each."""
    relabelled: int = 0
    """Samples whose first label vanished at low resolution, and another one was drawn."""
    vanished: int = 0
    """Samples left out: every label vanished."""
    empty: int = 0
    """Samples left out: no label at all."""
    thin: int | None = None
    """Index of the first slice, by its place in the store, of which a label vanished at low resolution."""
    failure: str = ""
    """Why the store could not be read; the batch is empty then."""

    def chunks(self, size: int) -> Iterator[TrainingBatch]:
        """The samples, at most `size` at a time and each with its own features: what one decoder pass takes."""
        if self.rows is None:
            yield self
            return
        for start in range(0, len(self.rows), size):
            chunk = slice(start, start + size)
            yield TrainingBatch(
                self.features[self.rows[chunk]], self.coords[chunk], self.labels[chunk], self.targets[chunk]
            )


class BatchRequest(NamedTuple):
    """Indices into the store of the samples of one batch."""

    epoch: int
    indices: tuple[int, ...]


class TrainingBatches(Dataset[TrainingBatch]):
    """One `TrainingBatch` per request. A store that can't be read becomes its `failure`: all processes must know."""

    def __init__(self, source: SliceSource[EmbeddedSlice], config: SamplingConfig) -> None:
        self._source = source
        self._config = config

    def __getitem__(self, request: BatchRequest) -> TrainingBatch:
        prompts, targets, shapes = [], [], []
        features: list[npt.NDArray[Any]] = []
        rows: list[int] = []
        relabelled = vanished = empty = 0
        thin = []
        for index in request.indices:
            try:
                stored = self._source[index]
            except SamriError as error:
                return empty_batch(self._config)._replace(failure=str(error))
            rng = np.random.default_rng([self._config.seed, request.epoch, index])
            label_map = self._config.structures(stored.mask)
            labels = labels_of(label_map)
            drawn, tries = drawn_targets(label_map, rng.permutation(labels), self._config)
            thin += [index] if tries > len(drawn) else []
            if not drawn:
                vanished += len(labels) > 0
                empty += len(labels) == 0
                continue
            relabelled += tries > len(drawn)
            for place, (binary, target) in enumerate(drawn):
                kind = prompt_kind(self._config.prompts, request.epoch, index + place)
                prompts.append(sample_prompt(binary, kind, rng, self._config.jitter))
                targets.append(target)
                shapes.append((binary.shape[0], binary.shape[1]))
                rows.append(len(features))
            features.append(stored.features)
        batch = assembled(features, prompts, targets, shapes, self._config)
        return batch._replace(
            rows=None if self._config.labels_per_slice == 1 else torch.tensor(rows, dtype=torch.int64),
            relabelled=relabelled,
            vanished=vanished,
            empty=empty,
            thin=min(thin, default=None),
        )


class BatchRequests(Sampler[BatchRequest]):
    """This process's requests of one epoch, `accumulate` of them per step; set `epoch` before each pass.

    The order of all samples depends on seed and epoch only. Each step takes the next `processes * accumulate *
    batch_size` of them, dealt out in turn; the last step takes what is left, so that a process may get an empty batch
    but every process has the same number of steps.
    """

    def __init__(self, samples: Sequence[int], settings: Settings, rank: int, processes: int) -> None:
        self.epoch = 1
        self._samples = np.asarray(samples)
        self._seed = settings.seed
        self._batch_size = settings.batch_size
        self._accumulate = settings.accumulate
        self._rank = rank
        self._processes = processes

    @property
    def samples_per_step(self) -> int:
        """Slices per step, over all processes."""
        return self._processes * self._accumulate * self._batch_size

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return -(-len(self._samples) // self.samples_per_step)

    def __len__(self) -> int:
        return self.steps * self._accumulate

    def __iter__(self) -> Iterator[BatchRequest]:
        # The spawn key keeps this stream apart from those of the samples.
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, self.epoch], spawn_key=(1,)))
        order = rng.permutation(self._samples)
        for start in range(0, len(order), self.samples_per_step):
            mine = order[start : start + self.samples_per_step][self._rank :: self._processes].tolist()
            for first in range(0, self._accumulate * self._batch_size, self._batch_size):
                yield BatchRequest(self.epoch, tuple(mine[first : first + self._batch_size]))


def loader(batches: Dataset[Any], requests: Any, workers: int, device: torch.device) -> DataLoader[Any]:
    """Whole batches, made ahead by `workers` processes or, with 0, in this one."""
    return DataLoader(
        batches,
        batch_size=None,
        collate_fn=_as_it_is,
        sampler=requests,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        # A fork would inherit the threads and locks of CUDA and NCCL: a classic hang.
        multiprocessing_context="spawn" if workers else None,
    )


def _as_it_is(batch: Any) -> Any:
    """Batches are made whole; torch's own conversion would turn label maps into tensors."""
    return batch


def labels_of(mask: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """The labels above 0 in a label map, ascending."""
    return np.flatnonzero(np.bincount(mask.ravel())[1:]) + 1


def drawn_targets(
    mask: npt.NDArray[Any], labels: npt.NDArray[np.intp], config: SamplingConfig
) -> tuple[list[tuple[npt.NDArray[np.bool_], LowRes]], int]:
    """The first of `labels` that are left at low resolution, as many as the config asks for, and how many were tried.

    Each is its (H, W) mask and its (L, L) target.
    """
    most = len(labels) if config.labels_per_slice == "all" else config.labels_per_slice
    drawn: list[tuple[npt.NDArray[np.bool_], LowRes]] = []
    for tries, label in enumerate(labels):
        if len(drawn) == most:
            return drawn, tries
        binary = mask == label
        target = low_res_target(binary, config.profile, config.image_size, config.low_res, config.targets)
        if target.any():
            drawn.append((binary, target))
    return drawn, len(labels)


def prompt_kind(prompts: TrainingPrompts, epoch: int, index: int) -> PromptKind:
    """`alternate` asks half the slices with a box and half with a point, and the other way round in the next epoch."""
    if prompts == "alternate":
        return "box" if (epoch + index) % 2 == 0 else "point"
    return prompts


def empty_batch(config: SamplingConfig) -> TrainingBatch:
    """No samples, in the right shapes."""
    return TrainingBatch(
        torch.zeros(0, *config.embedding_shape),
        torch.zeros(0, 2, 2),
        torch.zeros(0, 2),
        torch.zeros(0, 1, config.low_res, config.low_res, dtype=torch.bool),
    )


def assembled(
    features: Sequence[npt.NDArray[Any]],
    prompts: Sequence[Prompt],
    targets: Sequence[LowRes],
    shapes: Sequence[tuple[int, int]],
    config: SamplingConfig,
) -> TrainingBatch:
    """One batch of samples: prompts packed together and scaled into the model frame as inference scales them."""
    if not features:
        return empty_batch(config)
    coords, labels = to_batch(prompts)
    for row, shape in enumerate(shapes):
        coords[row] = to_model_frame(coords[row], shape, config.profile, config.image_size)
    return TrainingBatch(
        torch.from_numpy(np.stack(features)),
        torch.from_numpy(coords),
        torch.from_numpy(labels),
        torch.from_numpy(np.stack(targets)[:, None]),
    )
