from __future__ import annotations

import dataclasses

import pytest
import torch
from segment_anything import sam_model_registry

from samri.errors import CheckpointError
from samri.model import Architecture, build_sam, infer_architecture
from tests.support.sams import MEDIUM, SMALL, VIT_B


def on_meta(architecture: Architecture) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return dict(build_sam(architecture).state_dict())


@pytest.mark.parametrize(
    ("backbone", "heads", "global_blocks", "keys"),
    [
        ("vit_b", 12, (2, 5, 8, 11), 314),
        ("vit_l", 16, (5, 11, 17, 23), 482),
        ("vit_h", 16, (7, 15, 23, 31), 594),
    ],
)
def test_the_published_architectures_are_read_off_segment_anythings_own_models(
    backbone: str, heads: int, global_blocks: tuple[int, ...], keys: int
) -> None:
    with torch.device("meta"):
        published = sam_model_registry[backbone]()
    shapes = published.state_dict()
    architecture = infer_architecture(shapes, "sam.pth")
    assert architecture.backbone == backbone
    assert architecture.encoder_heads == heads
    assert architecture.global_blocks == global_blocks
    assert (architecture.image_size, architecture.window_size) == (1024, 14)
    assert architecture.embedding_shape == (256, 64, 64)
    rebuilt = on_meta(architecture)
    assert len(shapes) == keys
    assert {name: tensor.shape for name, tensor in rebuilt.items()} == {n: t.shape for n, t in shapes.items()}


@pytest.mark.parametrize(
    "architecture",
    [
        SMALL,
        MEDIUM,
        VIT_B,
        dataclasses.replace(SMALL, window_size=0, global_blocks=(0, 1, 2, 3)),
        dataclasses.replace(SMALL, global_blocks=()),
        dataclasses.replace(SMALL, encoder_mlp=170, encoder_width=96, encoder_heads=6, decoder_depth=3),
        dataclasses.replace(SMALL, mask_tokens=2, mask_channels=8, score_head_depth=2, score_head_width=7),
        dataclasses.replace(SMALL, decoder_width=128, attention_downsample=4, decoder_mlp=60),
        dataclasses.replace(SMALL, attention_downsample=1, image_size=120),
    ],
    ids=str,
)
def test_any_architecture_comes_back_from_its_own_tensors(architecture: Architecture) -> None:
    assert infer_architecture(on_meta(architecture), "sam.pth") == architecture


def test_an_unpublished_backbone_is_named_by_its_shape() -> None:
    assert SMALL.backbone == "vit_64x4_p8_s128"
    assert VIT_B.backbone == "vit_b"


def test_one_score_layer_has_no_hidden_width() -> None:
    shallow = dataclasses.replace(SMALL, score_head_depth=1)
    inferred = infer_architecture(on_meta(shallow), "sam.pth")
    assert {n: t.shape for n, t in on_meta(inferred).items()} == {n: t.shape for n, t in on_meta(shallow).items()}


def test_a_model_of_another_family_is_told_apart() -> None:
    state = {f"image_encoder.layers.{i}.weight": torch.zeros(2) for i in range(9)}
    with pytest.raises(CheckpointError, match=r"tiny\.pt: not a SAM-shaped model, image_encoder\.patch_embed"):
        infer_architecture(state, "tiny.pt")
