from __future__ import annotations

import dataclasses

import pytest
import torch

from samri.model import Architecture, ImageEncoder
from tests.support.sams import MEDIUM, SMALL, seeded_sam

ARCHITECTURES = {
    "padded windows": SMALL,
    "other width, patch and image": MEDIUM,
    "windows that fit": dataclasses.replace(SMALL, window_size=8),
    "one window larger than the grid": dataclasses.replace(SMALL, window_size=20),
    "all blocks global": dataclasses.replace(SMALL, window_size=0, global_blocks=(0, 1, 2, 3)),
    "no block global": dataclasses.replace(SMALL, global_blocks=()),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("query_rows", [3, 64])
def test_the_encoder_equals_segment_anythings(name: str, query_rows: int) -> None:
    architecture: Architecture = ARCHITECTURES[name]
    sam = seeded_sam(architecture)
    size = architecture.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = sam.image_encoder(images)
        embedding = ImageEncoder(sam.image_encoder, query_rows)(images)
    assert embedding.shape == (2, *architecture.embedding_shape)
    assert expected.std() > 0.5
    torch.testing.assert_close(embedding, expected, rtol=0, atol=2e-5)


def test_the_encoder_holds_encoder_weights_only() -> None:
    sam = seeded_sam(SMALL)
    own = {id(weight) for weight in ImageEncoder(sam.image_encoder).parameters()}
    assert own == {id(weight) for weight in sam.image_encoder.parameters()}
