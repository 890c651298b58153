"""What people and programs say: prompts through the Python API, and options of the eight commands."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from samri.prompts import Prompt
from samri_export.command import main as samri_export
from samri_runtime import Predictor
from samri_runtime.bench._command import main as samri_bench
from samri_runtime.doctor import main as samri_doctor
from samri_runtime.run import main as samri_run
from samri_training.embed import main as samri_embed
from samri_training.evaluate import main as samri_evaluate
from samri_training.prepare import main as samri_prepare
from samri_training.train import main as samri_train
from tests.fuzz import mutate
from tests.fuzz.ground import Ground
from tests.fuzz.trial import BrokenPromiseError, Case, invoke
from tests.support.scans import brain_like, save_nifti

_SHAPE = (40, 50)
COMMANDS = (samri_run, samri_export, samri_doctor, samri_bench, samri_prepare, samri_embed, samri_train, samri_evaluate)


def prompts(ground: Ground, _seeds: Path) -> Case:
    """`Predictor` answers each prompt with a finite mask of the slice's shape, or says what is wrong with it."""
    predictor = Predictor(ground.bundle, "cpu")
    image = brain_like(_SHAPE).astype(np.float32)
    embedding = predictor.encode(image)
    low_res = predictor.predict(embedding, boxes=[[5, 5, 30, 30]]).low_res_logits

    def case(rng: np.random.Generator, scratch: Path) -> None:
        if rng.random() < 0.15:
            predictor.encode(
                _odd_image(rng, image), mutate.pick(rng, (None, None, (0, 1), (1, 0), (float("nan"), 1), "ab", 3))
            )
            return
        given: dict[str, Any] = {}
        if rng.random() < 0.6:
            given["boxes"] = _odd_numbers(rng, [[5.0, 5.0, 30.0, 30.0]], 4)
        if rng.random() < 0.6:
            given["points"] = _odd_numbers(rng, [[12.0, 14.0], [20.0, 8.0]], 2)
        if rng.random() < 0.5:
            given["point_labels"] = mutate.pick(
                rng, ([1, 0], [1], [], [2, 1], "ab", [[1], [0, 1]], [[1, 0]], [True, False], 1)
            )
        if rng.random() < 0.2:
            given["mask_input"] = mutate.pick(
                rng, (low_res, low_res[0], low_res[:, :3], "x", 3, [[1], [2, 3]], low_res * np.nan, None)
            )
        if rng.random() < 0.1:
            given["prompts"] = mutate.pick(rng, ([], [Prompt.of(box=[1, 1, 9, 9])], None, 3, "ab", [3], [None], {}))
        if rng.random() < 0.3:
            given["multimask"] = mutate.pick(rng, (True, False, 1, None, "yes"))
        answer = predictor.predict(embedding, **given)
        if answer.masks.shape[-2:] != _SHAPE or not np.isfinite(answer.scores).all():
            raise BrokenPromiseError(f"masks of shape {answer.masks.shape}, scores {answer.scores} for {given!r}"[:900])

    return case


def options(ground: Ground, seeds: Path) -> Case:
    """Every command refuses senseless options with one line, whatever their values."""
    importlib.import_module("monai")  # Else samri-train's first case waits for it.
    seeds.mkdir(parents=True, exist_ok=True)
    scan = save_nifti(seeds / "scan.nii.gz", brain_like((24, 20, 5)), sform=np.eye(4))

    def case(rng: np.random.Generator, scratch: Path) -> None:
        command = mutate.pick(rng, COMMANDS)
        odd = _odd_paths(scratch, scan)
        arguments: list[str] = []
        for option in command.params:
            if not isinstance(option, click.Option) or option.name in ("help", "version"):
                continue
            heavy = command not in (samri_run, samri_doctor)
            # The input of what takes long is never a good one, so that no case works for minutes.
            needed = option.required or (heavy and option.name in _INPUTS)
            if not needed and rng.random() > 0.12:
                continue
            flag = mutate.pick(rng, [*option.opts, *option.secondary_opts])
            arguments.append(flag)
            if option.is_flag or (option.secondary_opts and option.nargs == 1 and option.type is click.BOOL):
                continue
            for part in range(option.nargs):
                arguments.append(_odd_value(rng, option, odd, ground, part, bad=heavy and option.name in _INPUTS))
        if rng.random() < 0.1:
            arguments.insert(
                mutate.pick(rng, (0, len(arguments))), mutate.pick(rng, (*mutate.TEXTS, "--nonsense", "--", "-", "-x"))
            )
        invoke(command, *arguments)

    return case


_INPUTS = ("model", "models", "checkpoint", "data_dir", "embedding_dir", "embedding_dirs", "source", "resume")
_OUTPUTS = ("output", "save_dir", "cache_dir", "rounded_checkpoint")


def _odd_value(
    rng: np.random.Generator, option: click.Option, odd: list[str], ground: Ground, part: int, *, bad: bool
) -> str:
    kinds: list[Callable[[], str]] = [lambda: mutate.pick(rng, odd)]
    if not bad:
        good = {"model": str(ground.bundle), "input": odd[0], "input_path": odd[0], "scan": odd[0]}
        kinds += [lambda: mutate.pick(rng, mutate.TEXTS), lambda: str(mutate.pick(rng, mutate.INTEGERS))]
        kinds += [lambda: str(mutate.pick(rng, mutate.FLOATS))]
        kinds += [lambda: good.get(option.name or "", "a=b"), lambda: good.get(option.name or "", str(10 + part))] * 2
        if isinstance(option.type, click.Choice):
            kinds += [lambda: str(mutate.pick(rng, list(option.type.choices)))] * 4  # type: ignore[attr-defined]
        elif option.type in (click.INT, click.FLOAT) or isinstance(option.type, click.IntRange):
            kinds += [lambda: str(int(rng.integers(0, 4)))] * 4
    text = mutate.pick(rng, kinds)()
    if option.name in _OUTPUTS and (text.startswith(("/", "~")) or ".." in text):
        text = "out"  # Nothing outside the scratch folder is at stake.
    if bad and text == "samri-tiny":
        text = "missing"
    # A command line holds no NUL, and every other text as bytes.
    return text.replace("\0", "").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def _odd_paths(scratch: Path, scan: Path) -> list[str]:
    """A good scan first, then places that exist and are something else."""
    (scratch / "empty").mkdir()
    (scratch / "text.txt").write_text("nothing\n")
    for name in ("x.nii.gz", "x.pth", "x.safetensors", "x.yaml", "manifest.json", "x.png", "store.json", "zero.nii"):
        (scratch / name).write_bytes(b"" if name.startswith("zero") else b"{}")
    for name in ("pipe", "pipe.nii.gz", "pipe.pth", "pipe.yaml", "pipe.png"):
        os.mkfifo(scratch / name)
    (scratch / "loop.nii.gz").symlink_to(scratch / "loop.nii.gz")
    (scratch / "folder.nii.gz").mkdir()
    (scratch / "pipes").mkdir()
    for name in ("manifest.json", "store.json", "last.pth", "a_img_0.nii.gz", "a_seg_0.nii.gz", "b_img_0.npz"):
        os.mkfifo(scratch / "pipes" / name)
    (scratch / "café.nii.gz").write_bytes(b"\x1f\x8b")
    names = [entry.name for entry in sorted(scratch.iterdir())]
    absent = [
        "missing",
        "missing.nii.gz",
        "missing/deep.pth",
        "a" * 300,
        "a" * 5000,
        "/dev/null",
        "/dev/zero",
        "b\udcff.nii",
    ]
    return [str(scan), *names, *absent, ".", "~", "", "samri-tiny", "-"]


def _odd_numbers(rng: np.random.Generator, good: list[list[float]], width: int) -> Any:
    """Coordinates in any shape and type that a program may hand over."""
    kinds: list[Callable[[], Any]] = [
        lambda: good,
        lambda: good[0],
        lambda: good * int(rng.integers(1, 12)),
        lambda: [good] * 2,
        lambda: [good[0], good[0][:-1]],
        lambda: [[*good[0], 1.0]],
        lambda: np.array(good, "i8").astype(
            mutate.pick(rng, ("f2", "i1", "u1", "c8", "O", "?", "S4", "U4", "M8[s]", "m8[s]"))
        ),
        lambda: np.array(good) * mutate.pick(rng, mutate.FLOATS),
        lambda: rng.normal(20, 15, (int(rng.integers(0, 5)), width)).tolist(),
        lambda: rng.normal(20, 15, tuple(int(n) for n in rng.integers(0, 4, int(rng.integers(0, 5))))),
        lambda: [mutate.pick(rng, (*mutate.INTEGERS, *mutate.FLOATS)) for _ in range(width)],
        lambda: mutate.value(rng),
        lambda: [mutate.value(rng) for _ in range(width)],
        lambda: {"a": good},
        lambda: iter(good),
        lambda: set(good[0]),
        lambda: [[], good[0]],
        lambda: [np.zeros((0, width)), np.array(good)],
        lambda: [None, good],
        lambda: np.ma.masked_array(good, mask=True),
    ]
    return mutate.pick(rng, kinds)()


def _odd_image(rng: np.random.Generator, image: Any) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: image.astype("i8").astype(
            mutate.pick(rng, ("f2", "f8", "g", "u1", "u8", "?", "c8", "O", "S3", "M8[s]"))
        ),
        lambda: np.where(rng.random(_SHAPE) < 0.01, mutate.pick(rng, mutate.FLOATS), image),
        lambda: np.zeros(tuple(int(n) for n in rng.integers(0, 5, int(rng.integers(0, 5))))),
        lambda: np.dstack([image] * int(rng.integers(1, 5))),
        lambda: mutate.value(rng),
        lambda: [[1, 2], [3]],
        lambda: np.full(_SHAPE, mutate.pick(rng, (*mutate.FLOATS, 2**63))),
        lambda: np.broadcast_to(np.float32(1), (1, 10**6)),
        lambda: image[:1, :1],
        lambda: image[::-2, ::-3].T,
        lambda: image.astype(">f4"),
    ]
    return mutate.pick(rng, kinds)()
