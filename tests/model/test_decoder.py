from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import Sam
from torch import Tensor

from samri.model import Architecture, DecoderImageStage, DecoderPromptStage, SamDecoder, image_stage_shapes
from samri.model._attention import image_to_token_attention, token_attention, token_to_image_attention
from samri.model._decoder import embed_points, image_pe, image_tokens
from samri.model._mask_convolutions import embed_masks, mask_logits, upscaling_matrix
from samri.model.split_decoder._factored_tokens import FactoredImageTokens
from samri.model.split_decoder._stages import _UPSCALING_FACTOR, _image_to_token_inputs, _token_to_image_inputs
from tests.support.examples import examples
from tests.support.sams import MEDIUM, SMALL, seeded_sam

ARCHITECTURES: dict[str, Architecture] = {
    "small": SMALL,
    "wider": MEDIUM,
    "deeper, no downsampling": dataclasses.replace(SMALL, decoder_depth=3, attention_downsample=1),
    "wide, strong downsampling, two masks": dataclasses.replace(
        SMALL, decoder_width=192, attention_downsample=4, mask_tokens=2, mask_channels=8, score_head_depth=2
    ),
}
ABSENT = -2.0
# segment-anything's own float32 results are this far from float64 ones, as a fraction of their range.
LOGITS = 1e-4


@functools.cache
def cached_small() -> Sam:
    return seeded_sam(SMALL)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def sam(request: pytest.FixtureRequest) -> Sam:
    return seeded_sam(ARCHITECTURES[request.param])


@pytest.fixture(scope="module")
def small() -> Sam:
    return cached_small()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embedding_for(sam: Sam, images: int = 1) -> Tensor:
    grid = sam.prompt_encoder.image_embedding_size
    return random(images, sam.prompt_encoder.embed_dim, *grid, seed=7)


def reference(
    sam: Sam, embedding: Tensor, coords: Tensor, labels: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One prompt through segment-anything, in the way `SamPredictor` calls it: points, then a box, then padding."""
    kept = labels != ABSENT
    coords, labels = coords[kept], labels[kept]
    is_box = labels >= 2
    points = (coords[~is_box & (labels >= 0)][None], labels[~is_box & (labels >= 0)][None])
    sparse, dense = sam.prompt_encoder(
        points=points if points[1].numel() else None,
        boxes=coords[is_box].reshape(-1, 4) if is_box.any() else None,
        masks=mask,
    )
    return sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)


def mixed_batch(sam: Sam) -> tuple[Tensor, Tensor]:
    """Five prompts of different lengths, padded with absent tokens in the end."""
    labels = torch.tensor(
        [
            [2.0, 3, ABSENT, ABSENT],
            [1, -1, ABSENT, ABSENT],
            [1, 0, 1, -1],
            [1, 2, 3, ABSENT],
            [0, 1, 2, 3],
        ]
    )
    size = sam.image_encoder.img_size
    return size * torch.rand(5, 4, 2, generator=torch.Generator().manual_seed(3)), labels


def test_a_batch_of_unequal_prompts_equals_segment_anything_one_by_one(sam: Sam) -> None:
    embedding = embedding_for(sam)
    coords, labels = mixed_batch(sam)
    with torch.no_grad():
        logits, scores = SamDecoder(sam)(embedding, coords, labels)
        for b in range(len(labels)):
            expected_logits, expected_scores = reference(sam, embedding, coords[b], labels[b])
            spread = expected_logits.max() - expected_logits.min()
            torch.testing.assert_close(logits[b : b + 1], expected_logits, rtol=0, atol=float(LOGITS * spread))
            torch.testing.assert_close(scores[b : b + 1], expected_scores, rtol=0, atol=2e-5)


def test_an_image_stage_that_is_computed_once_gives_the_same_masks(sam: Sam) -> None:
    embedding = embedding_for(sam)
    coords, labels = mixed_batch(sam)
    with torch.no_grad():
        stage = DecoderImageStage(sam)(embedding)
        for count in (1, 2, 5):
            for wanted in ([0], list(range(1, sam.mask_decoder.num_mask_tokens)), [1, 0]):
                logits, scores = DecoderPromptStage(sam)(*stage, coords[:count], labels[:count], torch.tensor(wanted))
                for b in range(count):
                    expected_logits, expected_scores = reference(sam, embedding, coords[b], labels[b])
                    spread = expected_logits.max() - expected_logits.min()
                    torch.testing.assert_close(
                        logits[b : b + 1], expected_logits[:, wanted], rtol=0, atol=float(LOGITS * spread)
                    )
                    torch.testing.assert_close(scores[b : b + 1], expected_scores[:, wanted], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_factored_image_tokens_equal_segment_anythings(name: str) -> None:
    """Two prompts of unequal length update them, layer by layer, with every gain and bias at work."""
    architecture = ARCHITECTURES[name]
    sam = copy.deepcopy(seeded_sam(architecture))
    transformer, width, tokens = sam.mask_decoder.transformer, architecture.decoder_width, 5
    padding_mask = torch.zeros(2, 1, 1, tokens)
    padding_mask[1, ..., 3:] = float("-inf")
    with torch.no_grad():
        for number, parameter in enumerate(transformer.parameters()):
            if parameter.ndim == 1:
                parameter += 0.3 * random(*parameter.shape, seed=number)
        embedding, pe = embedding_for(sam), image_pe(sam.prompt_encoder).expand(2, -1, -1)
        stage = dict(zip(image_stage_shapes(architecture), DecoderImageStage(sam)(embedding), strict=True))
        assert {key: tuple(value.shape) for key, value in stage.items()} == image_stage_shapes(architecture)
        expected, factored = image_tokens(sam.prompt_encoder, embedding).expand(2, -1, -1), FactoredImageTokens()

        def check_attention_to_image(n: int, attention: torch.nn.Module) -> None:
            queries = random(2, tokens, width, seed=100 + n)
            output = factored.token_to_image(attention, queries, _token_to_image_inputs(stage, n))
            torch.testing.assert_close(output, attention(q=queries, k=expected + pe, v=expected), rtol=1e-4, atol=1e-4)

        for n, layer in enumerate(transformer.layers):
            check_attention_to_image(n, layer.cross_attn_token_to_image)
            keys, values = random(2, tokens, width, seed=200 + n), random(2, tokens, width, seed=300 + n)
            image_to_token = layer.cross_attn_image_to_token
            whole = image_to_token(q=expected[:1] + pe[:1], k=keys[:1], v=values[:1])
            short = image_to_token(q=expected[1:] + pe[1:], k=keys[1:, :3], v=values[1:, :3])
            expected = layer.norm4(expected + torch.cat([whole, short]))
            factored.image_to_token(layer, keys, values, padding_mask, _image_to_token_inputs(stage, n))
        check_attention_to_image(len(transformer.layers), transformer.final_attn_token_to_image)
        matrix, bias = upscaling_matrix(sam.mask_decoder.output_upscaling[0])
        expected = expected @ matrix + bias
        output = factored.projected(_UPSCALING_FACTOR * matrix, _UPSCALING_FACTOR * bias, stage["upscaled"])
    scale = _UPSCALING_FACTOR * factored._scales[-1].transpose(1, 2)
    torch.testing.assert_close(output / scale, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [1.0, 0.1, 0.01])
def test_deviations_may_be_small(small: Sam, size: float) -> None:
    sam = copy.deepcopy(small)
    coords, labels = mixed_batch(sam)
    with torch.no_grad():
        for layer in sam.mask_decoder.transformer.layers:
            layer.cross_attn_image_to_token.out_proj.weight *= size
            layer.cross_attn_image_to_token.out_proj.bias *= size
        sam.prompt_encoder.no_mask_embed.weight *= size
        embedding = size * embedding_for(sam)
        expected, _ = SamDecoder(sam)(embedding, coords, labels)
        found, _ = DecoderPromptStage(sam)(*DecoderImageStage(sam)(embedding), coords, labels, torch.arange(4))
    torch.testing.assert_close(found, expected, rtol=0, atol=float(LOGITS / 4 * (expected.max() - expected.min())))


def test_an_image_that_is_alike_in_all_channels_has_no_deviation_of_its_own(small: Sam) -> None:
    embedding = (5.0 - small.prompt_encoder.no_mask_embed.weight)[:, :, None, None].expand_as(embedding_for(small))
    coords, labels = mixed_batch(small)
    with torch.no_grad():
        expected, _ = SamDecoder(small)(embedding, coords, labels)
        found, _ = DecoderPromptStage(small)(*DecoderImageStage(small)(embedding), coords, labels, torch.arange(4))
    torch.testing.assert_close(found, expected, rtol=0, atol=float(LOGITS * (expected.max() - expected.min())))


def test_mask_prompts_count_only_where_they_are_given(sam: Sam) -> None:
    embedding = embedding_for(sam)
    coords, labels = mixed_batch(sam)
    masks = 5 * random(5, 1, *sam.prompt_encoder.mask_input_size, seed=2)
    given_masks = torch.tensor([1.0, 0, 1, 0, 0])
    with torch.no_grad():
        logits, _ = SamDecoder(sam)(embedding, coords, labels, masks, given_masks)
        for b in range(len(labels)):
            mask = masks[b : b + 1] if given_masks[b] else None
            expected, _ = reference(sam, embedding, coords[b], labels[b], mask)
            spread = expected.max() - expected.min()
            torch.testing.assert_close(logits[b : b + 1], expected, rtol=0, atol=float(LOGITS * spread))


def test_a_mask_prompt_alone_equals_segment_anything(small: Sam) -> None:
    embedding, mask = embedding_for(small), 5 * random(1, 1, *small.prompt_encoder.mask_input_size)
    with torch.no_grad():
        sparse, dense = small.prompt_encoder(points=None, boxes=None, masks=mask)
        expected, _ = small.mask_decoder.predict_masks(embedding, small.prompt_encoder.get_dense_pe(), sparse, dense)
        logits, _ = SamDecoder(small)(embedding, torch.zeros(1, 1, 2), torch.full((1, 1), ABSENT), mask)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


def test_each_prompt_can_have_its_own_image(small: Sam) -> None:
    embeddings = embedding_for(small, images=5)
    coords, labels = mixed_batch(small)
    with torch.no_grad():
        logits, _ = SamDecoder(small)(embeddings, coords, labels)
        for b in range(5):
            expected, _ = reference(small, embeddings[b : b + 1], coords[b], labels[b])
            torch.testing.assert_close(logits[b : b + 1], expected, rtol=0, atol=2e-4)


@settings(max_examples=examples(12))
@given(
    labels=st.lists(st.sampled_from([1.0, 0.0, 2.0, 3.0, -1.0]), min_size=1, max_size=6),
    places=st.lists(st.integers(0, 6), max_size=5),
    garbage=st.sampled_from([0.0, -1e6, float("nan"), float("inf")]),
)
def test_absent_tokens_change_nothing_wherever_they_stand(
    labels: list[float], places: list[int], garbage: float
) -> None:
    sam = cached_small()
    embedding = embedding_for(sam)
    coords = [
        [float(x), float(y)] for x, y in 128 * torch.rand(len(labels), 2, generator=torch.Generator().manual_seed(1))
    ]
    padded_coords, padded_labels = list(coords), list(labels)
    for place in places:
        padded_coords.insert(place, [garbage, garbage])
        padded_labels.insert(place, ABSENT)
    plain_prompt = torch.tensor([coords]), torch.tensor([labels])
    padded_prompt = torch.tensor([padded_coords]), torch.tensor([padded_labels])
    with torch.no_grad():
        plain = SamDecoder(sam)(embedding, *plain_prompt)
        whole = SamDecoder(sam)(embedding, *padded_prompt)
        prepared = DecoderPromptStage(sam)(*DecoderImageStage(sam)(embedding), *padded_prompt, torch.arange(4))
    for padded in (whole, prepared):
        torch.testing.assert_close(padded[0], plain[0], rtol=0, atol=2e-4)
        torch.testing.assert_close(padded[1], plain[1], rtol=0, atol=1e-5)


def test_positional_encodings_are_exact_in_mixed_precision(small: Sam) -> None:
    coords, labels = torch.tensor([[[250.3, 17.0], [251.3, 18.0]]]), torch.tensor([[2.0, 3.0]])
    with torch.no_grad():
        points, pe = embed_points(small.prompt_encoder, coords, labels, 256), image_pe(small.prompt_encoder)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(embed_points(small.prompt_encoder, coords, labels, 256), points)
            assert torch.equal(image_pe(small.prompt_encoder), pe)


def test_gradients_reach_the_parameters_of_the_sam_and_equal_segment_anythings() -> None:
    ours, theirs = seeded_sam(SMALL), seeded_sam(SMALL)
    embedding = embedding_for(ours)
    coords, labels = mixed_batch(ours)
    target = random(5, 4, 64, 64, seed=11)
    logits, scores = SamDecoder(ours)(embedding, coords, labels)
    ((logits * target).mean() + scores.sum()).backward()
    expected = [reference(theirs, embedding, coords[b], labels[b]) for b in range(5)]
    loss = (torch.cat([low for low, _ in expected]) * target).mean() + torch.cat([score for _, score in expected]).sum()
    loss.backward()
    for (name, weight), other in zip(
        ours.mask_decoder.named_parameters(), theirs.mask_decoder.parameters(), strict=True
    ):
        assert other.grad is not None
        if name.endswith("k_proj.bias"):
            # Softmax doesn't see it: the true gradient is zero, and rounding noise there.
            assert other.grad.abs().max() < 1e-4
            continue
        assert weight.grad is not None, name
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-3, atol=float(1e-4 * other.grad.abs().max()) + 1e-7)


def test_the_decoder_holds_the_parameters_of_the_sam_itself(small: Sam) -> None:
    own = {id(weight) for weight in SamDecoder(small).parameters()}
    assert own == {id(w) for module in (small.prompt_encoder, small.mask_decoder) for w in module.parameters()}


@pytest.mark.parametrize("tokens", [1, 7, 30])
@pytest.mark.parametrize("shared", [True, False])
def test_folded_attention_equals_segment_anythings(sam: Sam, tokens: int, shared: bool) -> None:
    layer = sam.mask_decoder.transformer.layers[1]
    width, positions = sam.prompt_encoder.embed_dim, 36
    few = [random(3, tokens, width, seed=s) for s in (1, 2)]
    many = [random(1 if shared else 3, positions, width, seed=s) for s in (3, 4)]
    spread = [tensor.expand(3, -1, -1) for tensor in many]
    present = torch.zeros(3, 1, 1, tokens)
    attention = layer.cross_attn_token_to_image
    with torch.no_grad():
        expected = attention(q=few[0], k=spread[0], v=spread[1])
        torch.testing.assert_close(
            token_to_image_attention(attention, few[0], many[0], many[1]), expected, rtol=1e-4, atol=1e-5
        )
        attention = layer.cross_attn_image_to_token
        expected = attention(q=spread[0], k=few[0], v=few[1])
        torch.testing.assert_close(
            image_to_token_attention(attention, many[0], few[0], few[1], present), expected, rtol=1e-4, atol=1e-5
        )
        attention = layer.self_attn
        expected = attention(q=few[0], k=few[0], v=few[1])
        torch.testing.assert_close(token_attention(attention, few[0], few[1], present), expected, rtol=1e-4, atol=1e-5)


def test_upscaling_by_matrices_equals_transposed_convolutions(sam: Sam) -> None:
    decoder, grid = sam.mask_decoder, 5
    image = random(2, decoder.transformer_dim, grid, grid)
    weights = random(2, decoder.num_mask_tokens, decoder.transformer_dim // 8, seed=1)
    with torch.no_grad():
        expected = torch.einsum("bmc,bchw->bmhw", weights, decoder.output_upscaling(image))
        logits = mask_logits(decoder, image.flatten(2).transpose(1, 2), weights, grid)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_mask_prompts_by_matrices_equal_convolutions(sam: Sam) -> None:
    encoder = copy.deepcopy(sam.prompt_encoder).double()  # In float32 either way is off by 1e-5 on some processors.
    masks = 3 * random(2, 1, *encoder.mask_input_size).double()
    with torch.no_grad():
        expected = encoder.mask_downscaling(masks).flatten(2).transpose(1, 2)
        torch.testing.assert_close(embed_masks(encoder, masks), expected, rtol=1e-9, atol=1e-9)
