"""A training run: open the data, step through the epochs, validate, save the best and the latest state."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from samri import __version__
from samri.model import Checkpoint, SamDecoder
from samri.preprocessing import profile
from samri_training.devices import bf16_note
from samri_training.train._data import TrainingData, fine_structure_hint, names_digest, open_data
from samri_training.train._last import (
    check_same_curve,
    check_same_data,
    read_last,
    restore,
    save_best,
    save_last,
)
from samri_training.train._last_checks import RunData
from samri_training.train._processes import Processes, joined_processes
from samri_training.train._records import (
    Curves,
    Entry,
    EpochProgress,
    Events,
    Log,
    TrainOutcome,
    best_entry,
    git_commit,
    line,
    trained_entry,
    validated_entry,
    write_environment,
    write_json,
)
from samri_training.train._samples import BatchRequests, SamplingConfig, TrainingBatches, loader
from samri_training.train._settings import Settings
from samri_training.train._starting import held_folder, run_folder, starting_point
from samri_training.train._step import Training, TrainingError
from samri_training.train._validation import (
    Validation,
    ValidationBatches,
    ValidationBatchRequests,
    asked_with,
    validate,
)


def train(settings: Settings, *, resume: Path | None = None, say: Log = print) -> TrainOutcome:
    """Fine-tune the mask decoder on stored embeddings.

    Under torchrun all its processes call this, with the same arguments.

    Args:
        settings: What to do; with `resume`, the run's own settings with what may change changed.
        resume: A run's folder or its last.pth.
        say: Told one line now and then, in the first process only.

    Raises:
        SamriError: Something that the user can act on; at the same moment in all processes.
    """
    with (
        _kernels(settings.deterministic),
        joined_processes(settings.device) as processes,
        held_folder(settings, resume, processes),
    ):
        run = processes.agree(lambda: _TrainingRun(settings, resume, processes, say if processes.first else _silent))
        try:
            return run.to_the_end()
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory on {processes.device} with --batch-size {settings.batch_size}: "
                "halve it and double --accumulate, which gives the same steps"
            ) from error


class _TrainingRun:
    def __init__(self, settings: Settings, resume: Path | None, processes: Processes, say: Log) -> None:
        self._settings, self._processes, self._say = settings, processes, say
        last = None if resume is None else read_last(resume)
        self._folder = run_folder(settings, last)
        if last is not None:
            check_same_curve(last, settings)
        checkpoint = starting_point(settings, last)
        self._data = open_data(settings, checkpoint)
        samples, info = self._data.training_samples, self._data.training.info
        self._requests = BatchRequests(samples, settings, processes.rank, processes.count)
        began_with = checkpoint.sha256 if last is None else last.data.checkpoint_sha256
        self._run_data = _run_data(self._data, self._requests.samples_per_step, began_with)
        decoder = SamDecoder(checkpoint.sam).to(processes.device)
        self._training = Training(decoder, settings, processes, settings.epochs * self._requests.steps)
        # Only the first process writes files; the others need no encoder in their memory.
        self._sam = checkpoint.sam if processes.first else None
        self._history: list[Entry] = []
        self._epoch = 0
        if last is not None:
            check_same_data(last, settings, self._run_data)
            restore(self._training, last)
            self._history, self._epoch = list(last.history), last.epoch
        self._config = SamplingConfig.of(profile(info.profile), info.image_size, info.embedding_shape, settings)
        self._batches, self._validation_batches = _loaders(
            self._data, self._requests, self._config, settings, processes
        )
        self._events = Events(self._folder / "events" if settings.tensorboard and processes.first else None)
        self._curves = Curves(self._folder / "curves.png")
        self._introduce(checkpoint, resume)

    def to_the_end(self) -> TrainOutcome:
        """Train until the last epoch."""
        if self._epoch == 0 and not self._history and self._data.validation is not None:
            self._finish_epoch({"epoch": 0, **validated_entry(self._validate())})
        while self._epoch < self._settings.epochs:
            self._epoch += 1
            entry = self._train_epoch()
            if self._data.validation is not None and self._validation_is_due():
                entry |= validated_entry(self._validate())
            self._finish_epoch(entry)
        self._in_first(lambda: self._curves.draw(self._history))
        outcome = TrainOutcome.of(self._folder, self._epoch, self._history)
        if (line_of_outcome := outcome.line()) is not None:
            self._say(line_of_outcome)
        return outcome

    def _validation_is_due(self) -> bool:
        return self._epoch % self._settings.val_every == 0 or self._epoch == self._settings.epochs

    def _train_epoch(self) -> Entry:
        began = time.perf_counter()
        self._requests.epoch = self._epoch
        reports = []
        left_out = {"relabelled": 0, "vanished": 0, "empty": 0}
        thin: list[int] = []
        progress = EpochProgress(self._say, self._epoch, self._settings.epochs, self._requests.steps)
        batches = iter(self._batches)
        for step in range(1, self._requests.steps + 1):
            of_step = [next(batches) for _ in range(self._settings.accumulate)]
            for reason in left_out:
                left_out[reason] += sum(getattr(batch, reason) for batch in of_step)
            thin += [batch.thin for batch in of_step if batch.thin is not None]
            reports.append(self._training.step(of_step))
            progress.show(step, reports[-1])
        counts = torch.tensor(list(left_out.values()), dtype=torch.int64, device=self._processes.device)
        self._processes.sum(counts)
        lr = self._training.optimizer.param_groups[0]["lr"]
        entry = trained_entry(self._epoch, reports, lr, time.perf_counter() - began)
        if not entry["samples"]:
            raise TrainingError(self._nothing_learned(entry))
        entry |= dict(zip(left_out, counts.tolist(), strict=True))
        return entry | self._first_thin(min(thin, default=None))

    def _first_thin(self, mine: int | None) -> Entry:
        """The name of the first slice with a label that vanished, of all processes; nothing when there is none."""
        firsts = torch.zeros(self._processes.count, dtype=torch.int64, device=self._processes.device)
        firsts[self._processes.rank] = 0 if mine is None else mine + 1
        self._processes.sum(firsts)
        indices = [first - 1 for first in firsts.tolist() if first]
        return {"first_thin": self._data.training[min(indices)].name} if indices else {}

    def _nothing_learned(self, entry: Entry) -> str:
        where = self._data.training.path
        if entry["bad_steps"] or entry["overflows"]:
            return f"no step of epoch {self._epoch} was finite: look at the embeddings in {where}, or lower --lr"
        return (
            f"{where}: no slice has a label that is left at the decoder's resolution: check its masks, "
            "or keep thin structures with --targets nearest-exact, or with --targets coverage --loss balanced"
        )

    def _validate(self) -> Validation:
        assert self._validation_batches is not None
        samples = len(self._data.validation_samples)
        with self._best_weights():
            return validate(
                self._training.decoder, self._validation_batches, samples, self._config, self._settings, self._processes
            )

    def _best_weights(self) -> contextlib.AbstractContextManager[None]:
        """The averaged weights, when there are such."""
        average = self._training.average
        return contextlib.nullcontext() if average is None else average.in_place()

    def _finish_epoch(self, entry: Entry) -> None:
        """Keep what the epoch gave. `last.pth` comes last: a run that dies before it does the same epoch again."""
        self._history.append(entry)
        self._say(line(entry, self._settings.epochs))
        self._in_first(self._write)

    def _in_first(self, action: Callable[[], None]) -> None:
        """The first process does it; when it can't, all stop."""
        self._processes.agree(action if self._processes.first else lambda: None)

    def _write(self) -> None:
        assert self._sam is not None
        best = best_entry(self._history)
        if best is not None and best["epoch"] == self._epoch:
            with self._best_weights():
                save_best(self._folder, self._sam)
        prompts = None if self._data.validation is None else asked_with(self._settings)
        best_epoch = None if best is None else best["epoch"]
        logs = {"best_epoch": best_epoch, "validation_prompts": prompts, "epochs": self._history}
        write_json(self._folder / "logs.json", logs)
        self._curves.draw_now_and_then(self._history)
        self._events.add(self._history[-1])
        save_last(self._folder, self._sam, self._training, self._epoch, self._history, self._run_data)

    def _introduce(self, checkpoint: Checkpoint, resume: Path | None) -> None:
        """Say what is about to happen, and write it down."""
        trained = sum(parameter.numel() for parameter in self._training.parameters.values())
        total = sum(parameter.numel() for parameter in checkpoint.sam.parameters())
        self._say(
            f"{checkpoint.architecture.backbone}: training {trained:,} of {total:,} parameters on "
            f"{self._run_data.samples} slices, {self._run_data.samples_per_step} a step, "
            f"{self._processes.count} x {self._processes.device.type}; {self._data.note}"
        )
        for note in checkpoint.notes:
            self._say(f"note: {note}")
        if resume is not None:
            self._say(f"resuming {resume} after epoch {self._epoch}")
        if not self._processes.first:
            return
        for note in self._notes():
            self._say(note)
        arguments = {
            "settings": self._settings.to_json(),
            "samri_version": __version__,
            "git_commit": git_commit(),
            "processes": self._processes.count,
            "device": str(self._processes.device),
            "trained_parameters": trained,
            "parameters": total,
            "resumed_after_epoch": None if resume is None else self._epoch,
            "checkpoint_sha256": self._run_data.checkpoint_sha256,
            "data": dataclasses.asdict(self._run_data),
            "validation_samples": len(self._data.validation_samples),
        }
        write_json(self._folder / "args.json", arguments)
        write_environment(self._folder / "environment.txt")

    def _notes(self) -> list[str]:
        """Notes on settings that a person may want to change before hours pass."""
        notes = [
            bf16_note(self._settings.amp, self._processes.device),
            fine_structure_hint(self._data.training, self._data.training_samples, self._config, self._settings),
        ]
        return [note for note in notes if note is not None]


def _run_data(data: TrainingData, samples_per_step: int, checkpoint_sha256: str) -> RunData:
    return RunData(
        samples=len(data.training_samples),
        samples_per_step=samples_per_step,
        embedding_id=data.training.info.embedding_id,
        slices_sha256=names_digest(data.training, data.training_samples),
        validation_slices_sha256=(
            None if data.validation is None else names_digest(data.validation, data.validation_samples)
        ),
        checkpoint_sha256=checkpoint_sha256,
    )


def _loaders(
    data: TrainingData, requests: BatchRequests, config: SamplingConfig, settings: Settings, processes: Processes
) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """What makes the batches to learn from, and those to validate on."""
    workers, device = settings.num_workers, processes.device
    training = loader(TrainingBatches(data.training, config), requests, workers, device)
    if data.validation is None:
        return training, None
    shared = ValidationBatchRequests(len(data.validation_samples), settings.batch_size, processes.rank, processes.count)
    batches = ValidationBatches(data.validation, data.validation_samples, config)
    return training, loader(batches, shared, workers, device)


@contextlib.contextmanager
def _kernels(deterministic: bool) -> Iterator[None]:
    """Only kernels that give the same digits each time, for as long as the run lasts."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _silent(_line: str) -> None:
    return None
