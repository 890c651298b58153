from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.losses.dice import DiceFocalLoss
from segment_anything.modeling import Sam

from samri.errors import SamriError
from samri.model import SamDecoder
from samri_training.train import Settings
from samri_training.train._loss import mask_losses, true_iou
from samri_training.train._processes import Processes
from samri_training.train._samples import TrainingBatch
from samri_training.train._step import MAX_BAD_STEPS, StepResult, Training, TrainingError
from tests.support.sams import seeded_sam
from tests.support.training_reference import doubled, random_batch, reference_loss

CPU = torch.device("cpu")


def training(sam: Sam, **settings: object) -> Training:
    return Training(SamDecoder(sam), Settings(**settings), Processes(CPU), total_steps=100)  # type: ignore[arg-type]


def weights(of: Training) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in of.parameters.values()])


def test_the_mask_loss_is_monais_dice_focal_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(5, 1, 64, 64, generator=generator)
    targets = torch.rand(5, 1, 64, 64, generator=generator) > 0.7
    monai = DiceFocalLoss(sigmoid=True, squared_pred=True, lambda_dice=1, lambda_focal=10, gamma=2)
    assert torch.allclose(mask_losses(logits, targets).mean(), monai(logits, targets.float()), rtol=1e-6)


def test_the_balanced_loss_weighs_the_targets_box_and_the_rest_alike() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(3, 2, 32, 32, generator=generator, dtype=torch.float64)
    targets = torch.zeros(3, 1, 32, 32, dtype=torch.float64)
    for at, (top, left) in enumerate([(0, 0), (4, 9), (20, 24)]):
        targets[at, 0, top : top + 6, left : left + 8] = torch.rand(6, 8, generator=generator, dtype=torch.float64)
    losses = mask_losses(logits, targets, "balanced")
    for at, mask in np.ndindex(3, 2):
        p, t = (1 / (1 + np.exp(-logits[at, mask].numpy()))), targets[at, 0].numpy()
        entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p))
        rows, columns = np.nonzero(t)
        near = np.zeros((32, 32), bool)
        near[max(rows.min() - 1, 0) : rows.max() + 2, max(columns.min() - 1, 0) : columns.max() + 2] = True
        overlap = (p.sum() + t.sum() - np.abs(p - t).sum()) / (p.sum() + t.sum())
        expected = 1 - overlap + entropy[near].mean() + entropy[~near].mean()
        assert losses[at, mask].item() == pytest.approx(expected, rel=1e-4)


def test_true_iou_counts_pixels() -> None:
    logits = torch.full((1, 2, 4, 4), -1.0)
    logits[0, 0, :2] = 1
    targets = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    targets[0, 0, 1:3] = True
    assert true_iou(logits, targets).tolist() == [[pytest.approx(4 / 12), 0.0]]


@pytest.mark.parametrize("train_scores", [False, True])
def test_losses_and_gradients_agree_with_a_plain_loop_over_segment_anything(train_scores: bool) -> None:
    sam, plain = doubled(seeded_sam(seed=3)), doubled(seeded_sam(seed=3))
    batch = random_batch(4, kinds="alternate")
    ours = training(sam, clip_norm=0.0, train_scores=train_scores)
    losses = ours.losses(batch)
    wanted = torch.stack([reference_loss(plain, batch, at, train_scores) for at in range(4)])
    assert torch.allclose(losses, wanted, rtol=1e-5)

    report = ours.step([batch])
    wanted.mean().backward()
    references = dict(plain.named_parameters())
    for name, parameter in ours.parameters.items():
        reference = references[name].grad
        assert parameter.grad is not None and reference is not None
        # A key's bias has no effect, so its gradient is nothing but rounding: 1e-16.
        assert torch.allclose(parameter.grad, reference, rtol=1e-4, atol=1e-8), name
    assert report.loss / report.samples == pytest.approx(wanted.mean().item(), rel=1e-5)


@pytest.mark.parametrize("train_scores", [False, True])
def test_what_is_not_trained_has_no_gradient_in_the_plain_loop_either(train_scores: bool) -> None:
    plain = seeded_sam(seed=3)
    ours = training(seeded_sam(seed=3), train_scores=train_scores)
    batch = random_batch(3)
    torch.stack([reference_loss(plain, batch, at, train_scores) for at in range(3)]).mean().backward()
    for name, parameter in plain.mask_decoder.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        # Of the other masks' heads only the winners' are reached.
        if f"mask_decoder.{name}" not in ours.parameters:
            assert not reached, name
        elif not train_scores:
            assert reached, name


def test_one_step_agrees_with_plain_adamw() -> None:
    sam, plain = doubled(seeded_sam(seed=3)), doubled(seeded_sam(seed=3))
    batch = random_batch(4)
    ours = training(sam, lr=1e-3, clip_norm=0.5)
    ours.step([batch])

    references = {name: parameter for name, parameter in plain.named_parameters() if name in ours.parameters}
    optimizer = torch.optim.AdamW(references.values(), lr=1e-3, weight_decay=0.1)
    torch.stack([reference_loss(plain, batch, at) for at in range(4)]).mean().backward()
    torch.nn.utils.clip_grad_norm_(references.values(), 0.5)
    optimizer.step()
    for name, parameter in ours.parameters.items():
        assert torch.allclose(parameter, references[name], rtol=1e-4, atol=1e-7), name


def test_only_the_mask_decoder_moves() -> None:
    sam = seeded_sam()
    before = copy.deepcopy(sam.state_dict())
    training(sam, lr=1e-2).step([random_batch(2)])
    moved = {name for name, tensor in sam.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("mask_decoder.") for name in moved)
    assert not any("iou_prediction_head" in name or "mlps.1" in name for name in moved)


def test_accumulated_batches_make_the_step_of_one_large_batch() -> None:
    whole, parts = (training(doubled(seeded_sam()), lr=1e-3) for _ in range(2))
    batch = random_batch(6)
    first, second = (TrainingBatch(*(tensor[rows] for tensor in batch[:4])) for rows in (slice(0, 4), slice(4, 6)))
    for _ in range(3):
        one, two = whole.step([batch]), parts.step([first, second])
    assert one.loss == pytest.approx(two.loss, rel=1e-9)
    assert torch.allclose(weights(whole), weights(parts), rtol=1e-9, atol=1e-10)


def spoiled(batch: TrainingBatch) -> TrainingBatch:
    features = batch.features.clone()
    features[1, 3, 2, 1] = float("nan")
    return batch._replace(features=features)


def test_a_step_that_is_not_finite_is_left_out_and_the_next_one_is_not_harmed() -> None:
    ours, without = training(seeded_sam(), lr=1e-3), training(seeded_sam(), lr=1e-3)
    batch = random_batch(3)
    before = weights(ours).clone()
    report = ours.step([spoiled(batch)])
    assert report.bad and not report.moved
    assert torch.equal(weights(ours), before)
    assert ours.step([batch]).moved
    without.step([batch])
    assert torch.equal(weights(ours), weights(without))


def test_a_step_that_is_not_finite_stops_the_run_when_asked_to() -> None:
    with pytest.raises(TrainingError, match="step 1 has a loss or gradient that is not finite"):
        training(seeded_sam(), bad_steps="stop").step([spoiled(random_batch(3))])


def test_too_many_bad_steps_in_a_row_stop_the_run() -> None:
    ours, bad = training(seeded_sam()), spoiled(random_batch(2))
    ours.step([bad])
    assert ours.bad_in_a_row == 1
    ours.bad_in_a_row = MAX_BAD_STEPS - 1
    with pytest.raises(TrainingError, match=f"{MAX_BAD_STEPS} steps in a row"):
        ours.step([bad])


def test_a_batch_that_could_not_be_loaded_ends_the_run_with_its_reason() -> None:
    with pytest.raises(SamriError, match="shard 3 is damaged"):
        training(seeded_sam()).step([random_batch(1)._replace(failure="shard 3 is damaged")])


def test_a_step_without_samples_moves_nothing() -> None:
    ours = training(seeded_sam())
    before = weights(ours).clone()
    nothing = TrainingBatch(*(tensor[:0] for tensor in random_batch(1)[:4]))
    assert not ours.step([nothing]).moved
    assert torch.equal(weights(ours), before)


def test_bfloat16_gives_nearly_the_same_step() -> None:
    full, half = training(seeded_sam(), clip_norm=0.0), training(seeded_sam(), amp="bf16", clip_norm=0.0)
    batch = random_batch(4)
    one, two = full.step([batch]), half.step([batch])
    assert two.loss == pytest.approx(one.loss, rel=0.03)
    gradients = [torch.cat([p.grad.flatten() for p in each.parameters.values()]) for each in (full, half)]  # type: ignore[union-attr]
    assert torch.cosine_similarity(*gradients, dim=0) > 0.97


def test_float16s_scale_comes_down_when_gradients_overflow_and_is_no_bad_step() -> None:
    ours = training(seeded_sam(), amp="fp16", bad_steps="stop")
    before = ours.loss_scale.scale
    overflow = StepResult(loss=1.0, samples=2, grad_norm=float("inf"), moved=False, bad=False, overflow=True)
    ours.loss_scale.learn(overflow)
    assert ours.loss_scale.scale == before / 2
    for _ in range(2000):
        ours.loss_scale.learn(StepResult(1.0, 2, 1.0, True, False, False))
    assert ours.loss_scale.scale == before


def test_the_moving_average_is_used_and_taken_out_again() -> None:
    ours = training(seeded_sam(), ema=0.9, lr=1e-2)
    start = weights(ours).clone()
    ours.step([random_batch(2)])
    own = weights(ours).clone()
    assert ours.average is not None
    with ours.average.in_place():
        averaged = weights(ours).clone()
    assert torch.equal(weights(ours), own)
    # The first update weighs the new weights with 1 - 2 / 11.
    assert torch.allclose(averaged, start + (own - start) * 9 / 11, rtol=1e-5, atol=1e-7)
