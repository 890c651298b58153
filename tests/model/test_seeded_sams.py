"""The seeded models that other tests compare: their masks must be worth comparing."""

from __future__ import annotations

import pytest
import torch

from samri.model import Architecture, SamDecoder
from tests.support.sams import MEDIUM, SMALL, seeded_sam, with_other_decoder


@pytest.mark.parametrize("architecture", [SMALL, MEDIUM], ids=["small", "medium"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_mask_covers_a_part_of_its_image_and_changes_with_the_prompt(
    architecture: Architecture, seed: int
) -> None:
    sam = seeded_sam(architecture, seed)
    size = architecture.image_size
    image = torch.randn(1, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(image, size=(size, size), mode="bilinear")
    corners = torch.tensor([[[0.1, 0.2], [0.5, 0.6]], [[0.4, 0.3], [0.9, 0.8]], [[0.2, 0.5], [0.7, 0.95]]])
    with torch.no_grad():
        logits, _ = SamDecoder(sam)(sam.image_encoder(image), size * corners, torch.tensor([[2.0, 3]] * 3))
    coverage = (logits > 0).float().mean((2, 3))
    assert coverage.min() > 0.05 and coverage.max() < 0.95
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert ((logits[first] > 0) != (logits[second] > 0)).float().mean((1, 2)).min() > 0.01


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = seeded_sam(SMALL, 4).state_dict(), seeded_sam(SMALL, 4).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_another_decoder_leaves_the_encoder_as_it_is() -> None:
    sam = seeded_sam(SMALL)
    before = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    other = with_other_decoder(sam, seed=1).state_dict()
    for name, tensor in before.items():
        assert torch.equal(sam.state_dict()[name], tensor)
        if name.startswith("image_encoder."):
            assert torch.equal(other[name], tensor)
    assert not torch.equal(before["mask_decoder.iou_token.weight"], other["mask_decoder.iou_token.weight"])
