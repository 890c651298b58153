"""The demo model's training: its window of the frame is the model itself, and it learns, stops and resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from samri.errors import InputError
from samri_tiny import Phase, Plan, pretrain, tiny_sam
from samri_tiny.__main__ import main as samri_tiny
from samri_tiny._examples import DrawnExamples, collate
from samri_tiny._frame import FrameWindow
from samri_tiny._muon import Muon
from samri_tiny._optimizers import optimizers
from samri_tiny._rounds import corrected
from samri_tiny.finetuning import finetune
from samri_tiny.pretraining import FREQUENCIES
from tests.support.commands import call
from tests.support.sams import SMALL, save_checkpoint, seeded_sam

STILL = Plan(phases=(Phase(64, 1, 1, 1),), lr=1e-9, matrix_lr=1e-9, warmup=1, cooldown=1.0)
SHORT = Plan(phases=(Phase(64, 2, 3, 3), Phase(128, 1, 2, 1)), warmup=2, cooldown=0.5)


def test_a_batch_is_what_segment_anything_is_given() -> None:
    examples = DrawnExamples([], (1, 2), 128, 3, 12)
    drawn = [examples[number] for number in range(12)]
    batch = collate(drawn)
    sam = tiny_sam(side=128)
    for example, image in zip(drawn, batch.images(), strict=True):
        height, width = example.shape
        gray = torch.from_numpy(example.image[:height, :width])
        torch.testing.assert_close(image, sam.preprocess(gray.expand(3, -1, -1)), rtol=0, atol=1e-6)
    masks = torch.from_numpy(np.concatenate([example.masks for example in drawn])).float()
    torch.testing.assert_close(batch.targets()[:, 0], torch.nn.functional.avg_pool2d(masks, 2))
    assert {example.shape == (128, 128) for example in drawn} == {True, False}


def test_a_window_over_the_whole_frame_is_segment_anything() -> None:
    sam = tiny_sam(3)
    window = FrameWindow(sam, 256)
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    coords, labels = torch.tensor([[[50.0, 60.0], [120.0, 140.0]]]), torch.tensor([[2.0, 3.0]])
    with torch.no_grad():
        embedding = window.encode(image)
        torch.testing.assert_close(embedding, sam.image_encoder(image), rtol=1e-4, atol=1e-4)
        sparse, dense = sam.prompt_encoder(None, coords.reshape(1, 4), None)
        masks, scores = sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)
        ours, our_scores = window.decode(embedding, coords, labels)
    torch.testing.assert_close(ours, masks, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(our_scores, scores, rtol=1e-3, atol=1e-3)


def test_a_window_trains_the_full_model() -> None:
    sam = tiny_sam(3)
    window = FrameWindow(sam, 64)
    window.corner = (4, 20)
    torch.autograd.backward(window.encode(torch.randn(1, 3, 64, 64)).square().sum())
    gradient = sam.image_encoder.pos_embed.grad
    assert gradient is not None
    assert gradient[:, 4:12, 20:28].any()
    outside = gradient.clone()
    outside[:, 4:12, 20:28] = 0
    assert not outside.any()


def test_a_correction_lies_in_the_error_and_says_which_way() -> None:
    targets = torch.zeros(3, 1, 16, 16)
    targets[:, :, 4:9, 5:8] = 1
    logits = torch.where(targets > 0, 1.0, -1.0)
    logits[0, 0, 4, 5] = -1
    logits[1, 0, 12, 2] = 1
    chance = torch.empty(3, 16 * 16).exponential_(generator=torch.Generator().manual_seed(0))
    coords, labels = corrected(torch.zeros(3, 1, 2), torch.ones(3, 1), logits, targets, chance)
    assert coords[0, 1].tolist() == [10.5, 8.5]
    assert coords[1, 1].tolist() == [4.5, 24.5]
    assert labels[:, 1].tolist() == [1, 0, -2]


def test_corrections_are_drawn_as_torch_draws_them() -> None:
    targets = (torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    logits = torch.full((20, 1, 16, 16), -1.0)
    chance = torch.empty(20, 16 * 16).exponential_(generator=torch.Generator().manual_seed(2))
    coords, _ = corrected(torch.zeros(20, 1, 2), torch.ones(20, 1), logits, targets, chance)
    drawn = torch.multinomial(targets.flatten(1), 1, generator=torch.Generator().manual_seed(2))
    assert torch.equal(coords[:, 1], torch.cat([drawn % 16, drawn // 16], dim=1) * 2.0 + 0.5)


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = pretrain([], tmp_path / "whole", SHORT, log_every=1, progress=lambda _: None)
    state = tmp_path / "parts" / "last.pt"
    with pytest.raises(KeyboardInterrupt):
        pretrain([], tmp_path / "parts", SHORT, save_every=2, log_every=1, progress=_stop_at_third)
    assert torch.load(state, weights_only=True)["step"] == 2
    parts = pretrain([], tmp_path / "parts", SHORT, workers=2, log_every=1, progress=lambda _: None)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    with pytest.raises(InputError, match="of another plan"):
        pretrain([], tmp_path / "parts", dataclasses.replace(SHORT, seed=1), progress=lambda _: None)
    with pytest.raises(InputError, match="or start"):
        pretrain([], tmp_path / "parts", SHORT, start=tiny_sam(1).state_dict(), progress=lambda _: None)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_training_and_saves_nothing(tmp_path: Path) -> None:
    plan = Plan(phases=(Phase(64, 1, 1, 4),), lr=1e30, matrix_lr=1e30, warmup=1)
    with pytest.raises(InputError, match="by step 2 the loss is not finite; lower the plan's lr"):
        pretrain([], tmp_path, plan, progress=lambda _: None)
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.slow
def test_a_training_starts_from_the_weights_that_it_is_given(tmp_path: Path) -> None:
    start = tiny_sam(77)
    moved = pretrain([], tmp_path, STILL, start=start.state_dict(), progress=lambda _: None)
    for name, weight in start.state_dict().items():
        torch.testing.assert_close(moved.state_dict()[name], weight, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_start_with_other_frequencies_gets_the_recipes_own(tmp_path: Path) -> None:
    start = tiny_sam(77).state_dict()
    start[FREQUENCIES] = torch.randn_like(start[FREQUENCIES])
    moved = pretrain([], tmp_path, STILL, start=start, progress=lambda _: None)
    torch.testing.assert_close(moved.state_dict()[FREQUENCIES], tiny_sam().state_dict()[FREQUENCIES])


def test_places_are_compared_axis_by_axis() -> None:
    """The product of two encodings is a term in x and one in y: swapping the y of two pairs keeps the sum."""
    encoding = tiny_sam().prompt_encoder.pe_layer
    x, y, u, v = torch.rand(4, 2, 50, generator=torch.Generator().manual_seed(1))

    def alike(columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        first, second = encoding._pe_encoding(torch.stack([columns, rows], dim=-1))
        return (first * second).sum(-1)

    torch.testing.assert_close(alike(x, y) + alike(u, v), alike(x, v) + alike(u, y), rtol=1e-4, atol=1e-3)
    assert (alike(x, y) - alike(x, v)).abs().max() > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--phases", "64:1:0:1"], "all numbers above 0"),
        (["--phases", "100:1:1:1"], "sides are 64"),
        (["--phases", "64:1"], "side:images:prompts:steps"),
        (["--cooldown", "0"], "cooldown"),
        (["--device", "tpu"], "unknown torch device 'tpu'"),
        (["--from", "other.pth"], "start from a samri-tiny"),
        (["--from", "missing.pth"], "missing.pth"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_in_a_line(
    given: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "other.pth", seeded_sam(SMALL))
    (tmp_path / "maps").mkdir()
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "maps" / "one.nii.gz")
    done = call(samri_tiny, "--label-maps", "maps", "--output", "out", "--threads", 1, *given)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (1, 2)
    assert message in done.stderr


def test_muon_steps_as_pytorchs_own_does() -> None:
    """Also where matrices of one shape are made orthogonal together. PyTorch's computes in bfloat16, so only nearly."""
    generator = torch.Generator().manual_seed(5)
    stacks = [(32, 96, 1), (96, 32, 1), (96, 32, 3), (32, 32, 1), (96, 32, 1)]  # Four of 32 x 32: a stack, one alone.
    ours = {torch.nn.Parameter(torch.randn(r, c, generator=generator)): count for r, c, count in stacks}
    theirs = [[torch.nn.Parameter(part.clone()) for part in weight.detach().chunk(n)] for weight, n in ours.items()]
    before = [weight.detach().clone() for weight in ours]
    muon = Muon(dict(ours), lr=0.02, weight_decay=0.1)
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    torchs = torch.optim.Muon([part for parts in theirs for part in parts], **settings)
    for _ in range(3):
        for weight, parts in zip(ours, theirs, strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            for part, gradient in zip(parts, weight.grad.chunk(len(parts)), strict=True):
                part.grad = gradient.contiguous()
        muon.step()
        torchs.step()
    for weight, parts, start in zip(ours, theirs, before, strict=True):
        expected = torch.cat([part.detach() for part in parts]) - start
        assert (weight.detach() - start - expected).norm() / expected.norm() < 0.02


def test_muon_moves_the_matrices_and_adamw_all_else() -> None:
    sam = tiny_sam()
    adamw, muon = optimizers(dict(sam.named_parameters()), lr=1.0, matrix_lr=1.0, weight_decay=0.1)
    names = {id(weight): name for name, weight in sam.named_parameters()}
    moved = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    others = {names[id(weight)]: group["weight_decay"] for group in adamw.param_groups for weight in group["params"]}
    assert moved.isdisjoint(others) and len(moved) + len(others) == len(names)
    linear = {f"{name}.weight" for name, module in sam.named_modules() if isinstance(module, torch.nn.Linear)}
    assert moved == linear
    assert {name for name, decay in others.items() if decay} == {
        f"{name}.weight"
        for name, module in sam.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    }


def _stop_at_third(line: str) -> None:
    if line.startswith("step 3 "):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_stage_two_trains_the_decoder_alone(tmp_path: Path) -> None:
    first = tmp_path / "stage1.pth"
    before = tiny_sam(5).state_dict()
    torch.save(before, first)
    finetune([], first, tmp_path / "stage2", slices=8, epochs=1)
    # Not the best weights, which may be those of the start.
    after = torch.load(tmp_path / "stage2" / "run" / "last.pth", weights_only=True)["model"]
    moved = {name for name, weight in before.items() if not torch.equal(after[name], weight)}
    assert moved
    assert all(name.startswith("mask_decoder.") for name in moved)
    settings = json.loads((tmp_path / "stage2" / "run" / "args.json").read_text())["settings"]
    assert (settings["targets"], settings["loss"]) == ("coverage", "balanced")


@pytest.mark.exhaustive
def test_a_short_run_on_shapes_learns_to_follow_a_box(tmp_path: Path) -> None:
    """Some minutes; an untrained model's masks are empty or full."""
    plan = Plan(phases=(Phase(64, 24, 6, 120),), warmup=50, cooldown=0.5)
    pretrain([], tmp_path, plan, log_every=30, progress=lambda _: None)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["box"] < 0.15
    assert lines[-1]["box"] > 0.35
    assert lines[-1]["refined"] > lines[-1]["before"]
