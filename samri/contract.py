"""The contract between a bundle's graphs and the programs that run them: roles, tensor names, axes, and feeds.

The same in words, for hosts in other languages: docs/bundle.md. Symbols: B prompts of N points each, M masks, S x S
model input, (C, G, G) embedding, L = 4 G; docs/glossary.md has them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from samri.manifest import Role
from samri.prompts import PROMPTS_AT_ONCE

GraphRole = Literal["encoder", "decoder", "decoder_image", "decoder_prompts"]
"""The graphs that `samri_runtime` runs. Those with Meta's interface, the other `Role`s, are for other programs."""

PROMPT_INPUTS = ("point_coords", "point_labels", "wanted_masks")
"""The inputs of `decoder_prompts.onnx` that `decoder_image.onnx` doesn't give."""

Floats: TypeAlias = npt.NDArray[np.float32]
Feeds: TypeAlias = dict[str, npt.NDArray[Any]]
"""Every input of a graph, by name."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: Its name in the graph.
        axes: Its shape; an axis with a name instead of a number may have any size.
        integer: int64; otherwise float32.
    """

    name: str
    axes: tuple[int | str, ...]
    integer: bool = False


@dataclass(frozen=True)
class GraphSpec:
    """The inputs and outputs of a graph, in order."""

    role: Role
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def graph_spec(
    role: Role,
    *,
    image_size: int,
    embedding_shape: tuple[int, int, int],
    masks: int | str = "masks",
    image_stage: Mapping[str, tuple[int, ...]] | None = None,
) -> GraphSpec:
    """The inputs and outputs of the graph with that role.

    Args:
        role: The graph.
        image_size: S.
        embedding_shape: (C, G, G).
        masks: M; as a name it may be any number.
        image_stage: Names and shapes of the tensors that `decoder_image` passes to `decoder_prompts`, which depend on
            the decoder's layers. A host need not know them; None leaves them out.
    """
    low_res = 4 * embedding_shape[1]
    embeddings = TensorSpec("image_embeddings", (1, *embedding_shape))
    if role == "encoder":
        image = TensorSpec("image", ("images", 3, image_size, image_size))
        return GraphSpec(role, (image,), (TensorSpec("image_embeddings", ("images", *embedding_shape)),))
    stage = tuple(TensorSpec(name, shape) for name, shape in (image_stage or {}).items())
    if role == "decoder_image":
        return GraphSpec(role, (embeddings,), stage)
    points = (TensorSpec("point_coords", ("prompts", "points", 2)), TensorSpec("point_labels", ("prompts", "points")))
    if role == "decoder_prompts":
        return GraphSpec(
            role,
            (*stage, *points, TensorSpec("wanted_masks", ("masks",), integer=True)),
            (
                TensorSpec("low_res_masks", ("prompts", "masks", low_res, low_res)),
                TensorSpec("iou_predictions", ("prompts", "masks")),
            ),
        )
    if role == "decoder":
        return GraphSpec(
            role,
            (
                embeddings,
                *points,
                TensorSpec("mask_input", ("prompts", 1, low_res, low_res)),
                TensorSpec("has_mask_input", ("prompts",)),
            ),
            (
                TensorSpec("low_res_masks", ("prompts", masks, low_res, low_res)),
                TensorSpec("iou_predictions", ("prompts", masks)),
            ),
        )
    masks = 1 if role == "decoder_sam" else masks
    return GraphSpec(
        role,
        (
            embeddings,
            TensorSpec("point_coords", (1, "num_points", 2)),
            TensorSpec("point_labels", (1, "num_points")),
            TensorSpec("mask_input", (1, 1, low_res, low_res)),
            TensorSpec("has_mask_input", (1,)),
            TensorSpec("orig_im_size", (2,)),
        ),
        (
            TensorSpec("masks", (1, masks, "height", "width")),
            TensorSpec("iou_predictions", (1, masks)),
            TensorSpec("low_res_masks", (1, masks, low_res, low_res)),
        ),
    )


def encoder_feeds(image: Floats) -> Feeds:
    """Feeds of `encoder.onnx`: images (N, 3, S, S) from `samri.preprocessing.preprocess`."""
    return {"image": image}


def decoder_feeds(image_embeddings: Floats, coords: Floats, labels: Floats, masks: Floats | None = None) -> Feeds:
    """Feeds of `decoder.onnx`.

    Args:
        image_embeddings: (1, C, G, G).
        coords: (B, N, 2) in model coordinates, from `samri.prompts.to_model_frame`.
        labels: (B, N).
        masks: (B, 1, L, L) logits of an earlier prediction, or None.
    """
    prompts, low_res = len(labels), 4 * image_embeddings.shape[-1]
    return {
        "image_embeddings": image_embeddings,
        **_points(coords, labels),
        "mask_input": np.zeros((prompts, 1, low_res, low_res), np.float32) if masks is None else masks,
        "has_mask_input": np.full(prompts, masks is not None, np.float32),
    }


def decoder_image_feeds(image_embeddings: Floats) -> Feeds:
    """Feeds of `decoder_image.onnx`: an embedding (1, C, G, G)."""
    return {"image_embeddings": image_embeddings}


def decoder_prompts_feeds(
    image_stage: Mapping[str, npt.NDArray[Any]], coords: Floats, labels: Floats, mask_indices: npt.NDArray[np.int64]
) -> Feeds:
    """Feeds of `decoder_prompts.onnx`.

    Args:
        image_stage: All outputs of `decoder_image.onnx`, by name.
        coords: As for `decoder_feeds`.
        labels: As for `decoder_feeds`.
        mask_indices: (M,) which masks to compute: 0 is the single mask, 1 and more are the candidates.
    """
    return {**image_stage, **_points(coords, labels), "wanted_masks": mask_indices}


def sam_decoder_feeds(
    image_embeddings: Floats, coords: Floats, labels: Floats, shape: tuple[int, int], masks: Floats | None = None
) -> Feeds:
    """Feeds of a decoder with Meta's interface: those of `decoder_feeds` for one prompt, and the image's (H, W)."""
    return {
        **decoder_feeds(image_embeddings, coords, labels, masks),
        "orig_im_size": np.array(shape, dtype=np.float32),
    }


def _points(coords: Floats, labels: Floats) -> Feeds:
    return {"point_coords": coords, "point_labels": labels}


def prompt_chunks(prompts: int, most: int = PROMPTS_AT_ONCE) -> list[slice]:
    """The prompts of each run, when at most `most` go into one."""
    return [slice(start, start + most) for start in range(0, prompts, most)]


def concatenate_outputs(outputs: Sequence[Mapping[str, Floats]]) -> tuple[Floats, Floats]:
    """Logits (B, M, L, L) and scores (B, M) of several runs, one chunk of prompts each."""
    if len(outputs) == 1:
        return outputs[0]["low_res_masks"], outputs[0]["iou_predictions"]
    low_res, scores = (
        np.concatenate([output[name] for output in outputs]) for name in ("low_res_masks", "iou_predictions")
    )
    return low_res, scores
