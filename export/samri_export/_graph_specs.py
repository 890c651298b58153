"""The tensors of every graph that a bundle can hold: names, axes, and example values to trace with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from samri.manifest import Role
from samri.model import Architecture, image_stage_shapes

OPSET = 17


@dataclass(frozen=True)
class TensorSpec:
    """An input or output, float32 or int64: its name and axes, of which one with a name may have any size."""

    name: str
    axes: tuple[int | str, ...]
    integer: bool = False


@dataclass(frozen=True)
class GraphSpec:
    """The inputs and outputs of a graph, in order, and the number of outputs to expect of its module."""

    role: Role
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def example(self, sizes: dict[str, int]) -> tuple[torch.Tensor, ...]:
        """Inputs to trace with, named axes having `sizes`. Ones are valid for all of them."""
        return tuple(
            torch.ones(
                [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes],
                dtype=torch.int64 if tensor.integer else torch.float32,
            )
            for tensor in self.inputs
        )


def encoder_spec(architecture: Architecture) -> GraphSpec:
    """`encoder.onnx`: preprocessed images in, embeddings out."""
    size = architecture.image_size
    return GraphSpec(
        "encoder",
        inputs=(TensorSpec("image", ("images", 3, size, size)),),
        outputs=(TensorSpec("image_embeddings", ("images", *architecture.embedding_shape)),),
    )


def decoder_spec(architecture: Architecture) -> GraphSpec:
    """`decoder.onnx`: one image, a batch of prompts."""
    low_res = 4 * architecture.grid
    return GraphSpec(
        "decoder",
        inputs=(
            TensorSpec("image_embeddings", (1, *architecture.embedding_shape)),
            TensorSpec("point_coords", ("prompts", "points", 2)),
            TensorSpec("point_labels", ("prompts", "points")),
            TensorSpec("mask_input", ("prompts", 1, low_res, low_res)),
            TensorSpec("has_mask_input", ("prompts",)),
        ),
        outputs=(
            TensorSpec("low_res_masks", ("prompts", architecture.mask_tokens, low_res, low_res)),
            TensorSpec("iou_predictions", ("prompts", architecture.mask_tokens)),
        ),
    )


def image_stage_spec(architecture: Architecture) -> GraphSpec:
    """`decoder_image.onnx`: what the decoder computes of an image alone."""
    return GraphSpec(
        "decoder_image",
        inputs=(TensorSpec("image_embeddings", (1, *architecture.embedding_shape)),),
        outputs=_image_stage(architecture),
    )


def prompt_stage_spec(architecture: Architecture) -> GraphSpec:
    """`decoder_prompts.onnx`: the rest of the decoder, for a batch of prompts without masks."""
    whole = decoder_spec(architecture)
    return GraphSpec(
        "decoder_prompts",
        inputs=(
            *_image_stage(architecture),
            *whole.inputs[1:3],
            TensorSpec("wanted_masks", ("masks",), integer=True),
        ),
        outputs=tuple(TensorSpec(each.name, ("prompts", "masks", *each.axes[2:])) for each in whole.outputs),
    )


def _image_stage(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, shape) for name, shape in image_stage_shapes(architecture).items())


def sam_contract_spec(architecture: Architecture, role: Role) -> GraphSpec:
    """`decoder_sam.onnx` and `decoder_sam_multi.onnx`: the interface that Meta published."""
    low_res = 4 * architecture.grid
    masks = 1 if role == "decoder_sam" else architecture.mask_tokens
    return GraphSpec(
        role,
        inputs=(
            TensorSpec("image_embeddings", (1, *architecture.embedding_shape)),
            TensorSpec("point_coords", (1, "num_points", 2)),
            TensorSpec("point_labels", (1, "num_points")),
            TensorSpec("mask_input", (1, 1, low_res, low_res)),
            TensorSpec("has_mask_input", (1,)),
            TensorSpec("orig_im_size", (2,)),
        ),
        outputs=(
            TensorSpec("masks", (1, masks, "height", "width")),
            TensorSpec("iou_predictions", (1, masks)),
            TensorSpec("low_res_masks", (1, masks, low_res, low_res)),
        ),
    )


def named_axes(tensors: Sequence[TensorSpec]) -> dict[str, dict[int, str]]:
    """The axes of any size, as `torch.onnx.export` wants them."""
    named = {
        tensor.name: {place: axis for place, axis in enumerate(tensor.axes) if isinstance(axis, str)}
        for tensor in tensors
    }
    return {name: axes for name, axes in named.items() if axes}
