"""The shape of a SAM model, read off its tensors, and segment-anything's own classes built to that shape."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from samri.errors import CheckpointError
from samri.preprocessing import PIXEL_MEAN, PIXEL_STD

DECODER_HEADS = 8
"""The only number that leaves no trace in the tensors' shapes; every published SAM has eight."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All that decides the shapes of a SAM model's tensors."""

    image_size: int
    """S: the encoder sees S x S pixels."""
    patch_size: int
    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    encoder_mlp: int
    window_size: int
    """Side of the attention windows in tokens; 0 when all blocks attend globally."""
    global_blocks: tuple[int, ...]
    decoder_width: int
    """C: channels of the image embedding and width of the decoder's tokens."""
    decoder_depth: int
    decoder_mlp: int
    attention_downsample: int
    mask_tokens: int
    """M: one single-mask token and the multimask ones."""
    mask_channels: int
    """Channels of the first convolutions over a mask prompt."""
    score_head_depth: int
    score_head_width: int
    decoder_heads: int = DECODER_HEADS

    @property
    def grid(self) -> int:
        """G: tokens along a side of the image embedding."""
        return self.image_size // self.patch_size

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """(C, G, G)."""
        return (self.decoder_width, self.grid, self.grid)

    @property
    def backbone(self) -> str:
        """`vit_b`, `vit_l` or `vit_h` for the published encoders, else width, depth, patch and image size."""
        shape = (self.image_size, self.patch_size, self.encoder_width, self.encoder_depth)
        published = {
            (1024, 16, 768, 12): "vit_b",
            (1024, 16, 1024, 24): "vit_l",
            (1024, 16, 1280, 32): "vit_h",
        }
        name = f"vit_{self.encoder_width}x{self.encoder_depth}_p{self.patch_size}_s{self.image_size}"
        return published.get(shape, name)


def infer_architecture(state: Mapping[str, torch.Tensor], source: str) -> Architecture:
    """Read the architecture off the shapes of a full state dict with bare names.

    Args:
        state: Weights, or meta tensors; only shapes are looked at.
        source: The file's name, for messages.

    Raises:
        CheckpointError: A tensor that tells the shape is missing, or the shapes contradict each other.
    """
    shapes = _Shapes(state, source)
    width, colors, patch, _ = shapes.of("image_encoder.patch_embed.proj.weight", 4)
    _, grid, grid_across, _ = shapes.of("image_encoder.pos_embed", 4)
    if grid != grid_across or colors != 3:
        raise shapes.contradiction("a square grid of three-channel patches", "image_encoder.pos_embed")
    depth = shapes.count("image_encoder.blocks.{}.norm1.weight")
    spans = [shapes.of(f"image_encoder.blocks.{block}.attn.rel_pos_h", 2) for block in range(depth)]
    head_width = spans[0][1]
    if head_width == 0 or width % head_width:
        raise shapes.contradiction(f"heads that divide a width of {width}", "image_encoder.blocks.0.attn.rel_pos_h")
    global_blocks = tuple(block for block, (length, _) in enumerate(spans) if length == 2 * grid - 1)
    windows = {(length + 1) // 2 for length, _ in spans if length != 2 * grid - 1}
    if len(windows) > 1:
        raise shapes.contradiction("windows of one size", "image_encoder.blocks.*.attn.rel_pos_h")

    decoder_width = shapes.of("mask_decoder.iou_token.weight", 2)[1]
    internal_width = shapes.of("mask_decoder.transformer.final_attn_token_to_image.q_proj.weight", 2)[0]
    if internal_width == 0 or decoder_width % internal_width or internal_width % DECODER_HEADS or decoder_width % 8:
        raise shapes.contradiction(
            f"a decoder width that {DECODER_HEADS} heads divide", "mask_decoder.transformer.final_attn_token_to_image"
        )
    mask_channels = shapes.of("prompt_encoder.mask_downscaling.3.weight", 4)[0]
    if mask_channels % 4:
        raise shapes.contradiction("a number of channels that four divides", "prompt_encoder.mask_downscaling.3.weight")
    return Architecture(
        image_size=grid * patch,
        patch_size=patch,
        encoder_width=width,
        encoder_depth=depth,
        encoder_heads=width // head_width,
        encoder_mlp=shapes.of("image_encoder.blocks.0.mlp.lin1.weight", 2)[0],
        window_size=windows.pop() if windows else 0,
        global_blocks=global_blocks,
        decoder_width=decoder_width,
        decoder_depth=shapes.count("mask_decoder.transformer.layers.{}.norm1.weight"),
        decoder_mlp=shapes.of("mask_decoder.transformer.layers.0.mlp.lin1.weight", 2)[0],
        attention_downsample=decoder_width // internal_width,
        mask_tokens=shapes.of("mask_decoder.mask_tokens.weight", 2)[0],
        mask_channels=mask_channels,
        score_head_depth=shapes.count("mask_decoder.iou_prediction_head.layers.{}.weight"),
        score_head_width=shapes.of("mask_decoder.iou_prediction_head.layers.0.weight", 2)[0],
    )


def build_sam(architecture: Architecture) -> Sam:
    """Build segment-anything's `Sam` in evaluation mode, with its random initial weights, on torch's default device."""
    shape = architecture
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=shape.image_size,
            patch_size=shape.patch_size,
            embed_dim=shape.encoder_width,
            depth=shape.encoder_depth,
            num_heads=shape.encoder_heads,
            # segment-anything truncates width * ratio; the half makes that come out at the width that was read.
            mlp_ratio=(shape.encoder_mlp + 0.5) / shape.encoder_width,
            out_chans=shape.decoder_width,
            qkv_bias=True,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=shape.window_size,
            global_attn_indexes=shape.global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=shape.decoder_width,
            image_embedding_size=(shape.grid, shape.grid),
            input_image_size=(shape.image_size, shape.image_size),
            mask_in_chans=shape.mask_channels,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=shape.decoder_width,
            transformer=TwoWayTransformer(
                depth=shape.decoder_depth,
                embedding_dim=shape.decoder_width,
                num_heads=shape.decoder_heads,
                mlp_dim=shape.decoder_mlp,
                attention_downsample_rate=shape.attention_downsample,
            ),
            num_multimask_outputs=shape.mask_tokens - 1,
            iou_head_depth=shape.score_head_depth,
            iou_head_hidden_dim=shape.score_head_width,
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
    return sam.eval()


class _Shapes:
    """Shapes of a state dict by name, with the checkpoint's own words when one isn't there."""

    def __init__(self, state: Mapping[str, torch.Tensor], source: str) -> None:
        self._state = state
        self._source = source

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        tensor = self._state.get(name)
        if tensor is None:
            raise CheckpointError(f"{self._source}: not a SAM-shaped model, {name} is missing")
        if tensor.ndim != rank:
            raise CheckpointError(
                f"{self._source}: not a SAM-shaped model, {name} has shape {list(tensor.shape)}, not {rank} axes"
            )
        if 0 in tensor.shape:
            raise CheckpointError(
                f"{self._source}: not a SAM-shaped model, {name} has shape {list(tensor.shape)}, without any values"
            )
        return tuple(tensor.shape)

    def count(self, pattern: str) -> int:
        """The number of layers 0, 1, ... under `pattern`; at least one."""
        number = 0
        while pattern.format(number) in self._state:
            number += 1
        if number == 0:
            raise CheckpointError(f"{self._source}: not a SAM-shaped model, {pattern.format(0)} is missing")
        return number

    def contradiction(self, property_name: str, name: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: not a SAM-shaped model, {name} does not describe {property_name}")
