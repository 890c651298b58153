"""What a training step costs, against a straightforward loop, and decoder-only against the whole model.

    python benchmarks/training_step.py [--slices 48] [--rounds 5] [--whole-vit-b 1]

Three tables, all taken in one run, alternating the candidates:

1. Loading and prompts: the store and batched prompts, against one compressed float32 .npz a slice, with prompts made
   and embedded one by one.
2. Whole steps with ViT-B's decoder, and the share of the backward pass.
3. An epoch of decoder-only training on stored embeddings, against one of the whole model: the small seeded SAM of the
   tests and, with --whole-vit-b N (10 GB of memory), N samples of ViT-B.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses.dice import DiceFocalLoss
from segment_anything.modeling import Sam

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from samri.model import Architecture, SamDecoder, build_sam
from samri.model._decoder import embed_points
from samri.preprocessing import preprocess, profile
from samri_training.store import EmbeddedSlice, EmbeddingStore, EncoderFacts, ShardWriter, StoreInfo, StorePlan
from samri_training.train import Settings
from samri_training.train._processes import Processes
from samri_training.train._samples import BatchRequest, SamplingConfig, TrainingBatches
from samri_training.train._step import Training
from tests.support.sams import SMALL, VIT_B, seeded_sam

CPU = torch.device("cpu")
LOSS = DiceFocalLoss(sigmoid=True, squared_pred=True, lambda_dice=1, lambda_focal=10, gamma=2)


@dataclass(frozen=True)
class Data:
    """The same slices in both forms."""

    store: EmbeddingStore
    files: list[Path]
    images: list[np.ndarray[Any, Any]]


def made(folder: Path, architecture: Architecture, count: int) -> Data:
    """`count` slices of 256 x 256 with four structures each. Features are noise: packing them costs what it costs."""
    rng = np.random.default_rng(0)
    facts = EncoderFacts(
        embedding_id="0" * 32,
        profile="samri",
        image_size=architecture.image_size,
        embedding_shape=architecture.embedding_shape,
        backbone=architecture.backbone,
        precision="fp32",
        checkpoint="seeded",
        checkpoint_sha256="0" * 64,
    )
    slices, files, images = [], [], []
    rows, columns = np.mgrid[:256, :256]
    for at in range(count):
        mask = np.zeros((256, 256), np.uint8)
        for label in range(1, 5):
            center, radii = rng.uniform(40, 216, 2), rng.uniform(8, 40, 2)
            mask[((rows - center[0]) / radii[0]) ** 2 + ((columns - center[1]) / radii[1]) ** 2 <= 1] = label
        features = rng.standard_normal(architecture.embedding_shape).astype(np.float32)
        slices.append(EmbeddedSlice(f"case_img_{at}", "case", features, mask, (1.0, 1.0)))
        files.append(folder / f"case_img_{at}.npz")
        np.savez_compressed(files[-1], img=features[None], mask=mask[None], ori_size=np.array(mask.shape))
        images.append((mask * 50 + rng.normal(20, 5, mask.shape)).astype(np.float32))
    info = StoreInfo.of(facts, "fp16", "slices")
    plan = StorePlan.of(info, [(each.name, each.case) for each in slices])
    plan.begin(folder / "store")
    for shard in plan.shards:
        with ShardWriter(folder / "store", info, shard, 8) as writer:
            writer.append(slices[shard.start : shard.start + shard.count])
            writer.seal({})
    return Data(EmbeddingStore.open(folder / "store"), files, images)


def straightforward(sam: Sam, file: Path, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """One sample: load, draw a label, resize its mask, make a box, embed it."""
    content = np.load(file)
    features = torch.from_numpy(content["img"])
    labels = content["mask"][0]
    mask = labels == rng.choice(np.unique(labels)[1:])
    low_res = 4 * features.shape[-1]
    target = torch.nn.functional.interpolate(
        torch.from_numpy(mask).float()[None, None], (low_res, low_res), mode="nearest-exact"
    )
    ys, xs = np.nonzero(mask)
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=np.float32)
    size = sam.image_encoder.img_size
    boxes = torch.from_numpy(box * (size / max(mask.shape)))[None]
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    return features, sparse, dense, target


def straightforward_step(sam: Sam, files: list[Path], optimizer: torch.optim.Optimizer) -> float:
    """A step, sample by sample; the seconds of its backward passes are returned."""
    rng, backward = np.random.default_rng(0), 0.0
    optimizer.zero_grad()
    for file in files:
        features, sparse, dense, target = straightforward(sam, file, rng)
        masks, _ = sam.mask_decoder(
            image_embeddings=features,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        loss = LOSS(masks, target) / len(files)
        began = time.perf_counter()
        loss.backward()
        backward += time.perf_counter() - began
    optimizer.step()
    return backward


def whole_model_step(sam: Sam, image: np.ndarray[Any, Any], file: Path, optimizer: torch.optim.Optimizer) -> None:
    """One sample with the image encoder learning too."""
    pixels = torch.from_numpy(preprocess(image, profile("samri"), sam.image_encoder.img_size))
    optimizer.zero_grad()
    _, sparse, dense, target = straightforward(sam, file, np.random.default_rng(0))
    masks, _ = sam.mask_decoder(
        image_embeddings=sam.image_encoder(pixels),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    LOSS(masks, target).backward()
    optimizer.step()


def alternating(rounds: int, *actions: Callable[[], object]) -> list[list[float]]:
    """Seconds of each action in each round, after one that isn't counted."""
    seconds: list[list[float]] = [[] for _ in actions]
    for turn in range(rounds + 1):
        for action, found in zip(actions, seconds, strict=True):
            began = time.perf_counter()
            action()
            if turn:
                found.append(time.perf_counter() - began)
    return seconds


def spread(seconds: list[float], per: int) -> str:
    low, median, high = np.percentile(np.array(seconds) / per * 1e3, (10, 50, 90))
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def loading_table(data: Data, sam: Sam, rounds: int, batch_size: int) -> None:
    count = len(data.files)
    shape = data.store.info.embedding_shape
    batches = TrainingBatches(
        data.store, SamplingConfig.of(profile("samri"), data.store.info.image_size, shape, Settings())
    )
    whole = [tuple(range(at, min(at + batch_size, count))) for at in range(0, count, batch_size)]

    def ours() -> None:
        for indices in whole:
            batch = batches[BatchRequest(1, indices)]
            with torch.no_grad():
                embed_points(sam.prompt_encoder, batch.coords, batch.labels, data.store.info.image_size)

    def plain() -> None:
        rng = np.random.default_rng(0)
        for file in data.files:
            straightforward(sam, file, rng)

    seconds = alternating(rounds, plain, ours)
    ratio = np.median(seconds[0]) / np.median(seconds[1])
    print(f"\nLoading and prompts, {count} slices of {shape}, batches of {batch_size}, ms a slice: median (p10-p90)\n")
    print("| | ms | |\n|---|---|---|")
    print(f"| compressed float32 .npz, one by one | {spread(seconds[0], count)} | 1 |")
    print(f"| store, batched | {spread(seconds[1], count)} | **{ratio:.1f} times** |")


def step_table(data: Data, sam: Sam, rounds: int, batch_size: int) -> None:
    settings = Settings(batch_size=batch_size)
    shape = data.store.info.embedding_shape
    frame = SamplingConfig.of(profile("samri"), data.store.info.image_size, shape, settings)
    batches = TrainingBatches(data.store, frame)
    training = Training(SamDecoder(sam), settings, Processes(CPU), 1000)
    optimizer = torch.optim.AdamW(training.parameters.values(), lr=1e-5, weight_decay=0.1)
    shares: list[list[float]] = [[], []]

    def plain() -> None:
        shares[0].append(straightforward_step(sam, data.files[:batch_size], optimizer))

    def ours() -> None:
        backward = torch.autograd.backward
        spent = 0.0

        def timed(*arguments: Any, **options: Any) -> None:
            nonlocal spent
            began = time.perf_counter()
            backward(*arguments, **options)
            spent += time.perf_counter() - began

        torch.autograd.backward = timed
        try:
            training.step([batches[BatchRequest(1, tuple(range(batch_size)))]])
        finally:
            torch.autograd.backward = backward
        shares[1].append(spent)

    seconds = alternating(rounds, plain, ours)
    ratio = np.median(seconds[0]) / np.median(seconds[1])
    parts = [np.median(np.array(share[1:]) / each) for share, each in zip(shares, seconds, strict=True)]
    print(f"\nWhole steps, ViT-B's decoder, {batch_size} slices per step, ms per slice: median (p10-p90)\n")
    print("| | ms | | of it backward |\n|---|---|---|---|")
    print(f"| straightforward | {spread(seconds[0], batch_size)} | 1 | {parts[0]:.0%} |")
    print(f"| samri-train | {spread(seconds[1], batch_size)} | **{ratio:.1f} times** | {parts[1]:.0%} |")


def whole_model_table(title: str, data: Data, sam: Sam, samples: int, rounds: int, batch_size: int) -> None:
    parameters = sum(each.numel() for part in (sam.image_encoder, sam.mask_decoder) for each in part.parameters())
    settings = Settings(batch_size=batch_size)
    frame = SamplingConfig.of(profile("samri"), data.store.info.image_size, data.store.info.embedding_shape, settings)
    batches = TrainingBatches(data.store, frame)

    def whole_model() -> None:
        # Gradients of its own: the decoder's are views of the other candidate's buffer.
        kept = {parameter: parameter.grad for parameter in sam.parameters()}
        sam.zero_grad(set_to_none=True)
        sam.requires_grad_(True)
        sam.prompt_encoder.requires_grad_(False)
        # Without momentum: its state would only add to the memory, and its time is small.
        optimizer = torch.optim.SGD((each for each in sam.parameters() if each.requires_grad), lr=1e-9)
        for image, file in zip(data.images[:samples], data.files, strict=False):
            whole_model_step(sam, image, file, optimizer)
        sam.requires_grad_(False)
        for parameter, gradient in kept.items():
            parameter.grad = gradient

    training = Training(SamDecoder(sam), settings, Processes(CPU), 1000)
    trained = sum(parameter.numel() for parameter in training.parameters.values())

    def decoder_only() -> None:
        for parameter in training.parameters.values():
            parameter.requires_grad_(True)
        training.step([batches[BatchRequest(1, tuple(range(batch_size)))]])

    whole, ours = alternating(rounds, whole_model, decoder_only)
    less = 1 - np.median(ours) / batch_size / (np.median(whole) / samples)
    print(f"\nDecoder only against the whole model, {title}, ms by slice of an epoch: median (p10-p90)\n")
    print("| | trained parameters | ms |\n|---|---|---|")
    print(f"| whole model | {parameters:,} | {spread(whole, samples)} |")
    print(f"| decoder on stored embeddings | {trained:,} | {spread(ours, batch_size)} |")
    print(f"| less by | {1 - trained / parameters:.1%} | {less:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--whole-vit-b", type=int, default=0, metavar="N", help="Train the whole ViT-B on N samples too."
    )
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "vit_b")
        small.mkdir()
        large.mkdir()
        whole_model_table("the tests' small SAM", made(small, SMALL, 16), seeded_sam(), 16, options.rounds, 16)
        data = made(large, VIT_B, options.slices)
        sam = build_sam(VIT_B)
        loading_table(data, sam, options.rounds, options.batch_size)
        step_table(data, sam, options.rounds, options.batch_size)
        if options.whole_vit_b:
            whole_model_table("ViT-B", data, sam, options.whole_vit_b, 2, options.batch_size)


if __name__ == "__main__":
    main()
