"""The evaluation loop: every model segments every structure of every slice from the same prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from samri.errors import InputError
from samri.prompts import Prompt
from samri_runtime import Embedding
from samri_training.evaluate._metrics import Measures, measure
from samri_training.evaluate._models import Model, segment
from samri_training.evaluate._sources import TestSource
from samri_training.prompting import PromptKind, sample_prompt
from samri_training.slices import LabelledSlice, Size, size_of
from samri_training.store import EmbeddedSlice


@dataclass(frozen=True)
class Protocol:
    """How models are prompted.

    Attributes:
        prompts: Kinds, each evaluated by itself.
        seed: Random seed of the prompts, which depend on it, the slice's name and the label alone.
        jitter: Move the boxes' sides as in training. Off in the published results.
        multimask: Take the best-scored of three candidates rather than the single mask.
        min_pixels: Smaller structures are left out, and counted.
    """

    prompts: tuple[PromptKind, ...] = ("box",)
    seed: int = 0
    jitter: bool = False
    multimask: bool = False
    min_pixels: int = 10


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One structure of one slice, as one model found it from one prompt.

    Attributes:
        pixels: Area of the true structure.
        share: `pixels` as a fraction of the image.
        score: The model's own estimate of the IoU.
    """

    prompt: PromptKind
    model: str
    slice: str
    case: str
    label: int
    pixels: int
    share: float
    size: Size
    measures: Measures
    score: float
    prompt_used: Prompt
    dataset: str = ""


@dataclass
class Evaluation:
    """All rows, and what was left out."""

    protocol: Protocol
    models: tuple[str, ...]
    notes: tuple[str, ...] = ()
    rows: list[EvaluationRow] = field(default_factory=list)
    slices: int = 0
    structures: int = 0
    cases: set[str] = field(default_factory=set)
    slices_without_structures: int = 0
    structures_too_small: int = 0


def evaluate(
    source: TestSource,
    models: Sequence[Model],
    protocol: Protocol,
    on_slice: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Measure every model on every structure of every slice.

    Models with the same encoder, preprocessing and backend share its embedding of a slice. Prompts come from the ground
    truth and are the same for all models, whatever their order and whatever else is evaluated.

    Args:
        source: The test slices.
        models: With different names.
        protocol: How they are prompted.
        on_slice: Called after each slice.

    Raises:
        InputError: A slice can't be used, no structure is left, or a store was made by another encoder than a model's.
    """
    for model in models:
        source.accept(model)
    evaluation = Evaluation(protocol, tuple(model.name for model in models), tuple(source.notes))
    for index, dataset in enumerate(source.datasets):
        _evaluate_slice(source[index], dataset, models, evaluation)
        on_slice()
    if not evaluation.rows:
        raise InputError(
            f"nothing to evaluate: none of {evaluation.slices} slices has a structure of "
            f"{protocol.min_pixels} pixels or more"
        )
    return evaluation


def prompt_generator(seed: int, name: str, label: int) -> np.random.Generator:
    """The randomness of one structure's prompt: the same in every run, on every machine and in every subset.

    Only the part of the name after the last slash counts, so that a dataset and its store get the same prompts.
    """
    own_name = name.rpartition("/")[2]
    key = int.from_bytes(hashlib.sha256(own_name.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, key, label])


def _evaluate_slice(
    sample: LabelledSlice | EmbeddedSlice, dataset: str, models: Sequence[Model], evaluation: Evaluation
) -> None:
    protocol = evaluation.protocol
    labels, counts = np.unique(sample.mask, return_counts=True)
    areas = [(int(label), int(count)) for label, count in zip(labels, counts, strict=True) if label != 0]
    structures = [(label, count) for label, count in areas if count >= protocol.min_pixels]
    evaluation.slices += 1
    evaluation.structures += len(structures)
    evaluation.structures_too_small += len(areas) - len(structures)
    if not structures:
        evaluation.slices_without_structures += 1
        return
    evaluation.cases.add(sample.case)
    truths = {label: sample.mask == label for label, _ in structures}
    embeddings: dict[tuple[str, str, str], Embedding] = {}
    for kind in protocol.prompts:
        prompts = [
            sample_prompt(truths[label], kind, prompt_generator(protocol.seed, sample.name, label), protocol.jitter)
            for label, _ in structures
        ]
        for model in models:
            # An encoder without an id can't share its embeddings.
            encoder = (model.backend, model.embedding_id or "", "" if model.embedding_id else model.name)
            if encoder not in embeddings:
                embeddings[encoder] = _embed(model, sample)
            masks, scores = segment(model, embeddings[encoder], prompts, protocol.multimask)
            for (label, pixels), mask, score, prompt_used in zip(structures, masks, scores, prompts, strict=True):
                evaluation.rows.append(
                    EvaluationRow(
                        kind,
                        model.name,
                        sample.name,
                        sample.case,
                        label,
                        pixels,
                        pixels / mask.size,
                        size_of(pixels, (mask.shape[0], mask.shape[1])),
                        measure(mask, truths[label], sample.spacing),
                        float(score),
                        prompt_used,
                        dataset,
                    )
                )


def _embed(model: Model, sample: LabelledSlice | EmbeddedSlice) -> Embedding:
    if isinstance(sample, EmbeddedSlice):
        return Embedding(np.array(sample.features, dtype=np.float32)[None], sample.shape, model.embedding_id)
    try:
        return model.encode(sample.image, sample.intensity_range)
    except InputError as error:
        raise InputError(f"{sample.name}: {error}") from error
