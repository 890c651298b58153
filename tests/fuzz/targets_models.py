"""Bundles, checkpoints, cached embeddings and tuned settings: damage never changes a mask silently."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from samri.bundle import Bundle
from samri.model import load_checkpoint
from samri_runtime import Predictor
from samri_runtime._tuned import Tuned, save_tuned, tuned_file
from samri_runtime.cache import EmbeddingCache
from tests.fuzz import mutate
from tests.fuzz.ground import Ground
from tests.fuzz.trial import BrokenPromiseError, Case, check_message

_BOX = [[20, 15, 70, 60]]
# What these say decides the mask, or names other files.
_MEANING = ("profile", "image_size", "embedding_shape", "masks", "graphs")


def manifest(ground: Ground, _seeds: Path) -> Case:
    """A changed manifest is refused, or the mask stays; only a changed profile may change the mask."""
    text = (ground.bundle / "manifest.json").read_bytes()
    image, expected = _image(), _answer(Predictor(ground.bundle, "cpu"), _image())

    def case(rng: np.random.Generator, scratch: Path) -> None:
        folder = _linked(ground.bundle, scratch / "bundle")
        damaged = mutate.document(rng, text)
        _write(folder / "manifest.json", damaged)
        mask = _answer(Predictor(folder, "cpu"), image)
        old, new = json.loads(text), json.loads(damaged)
        if all(old[key] == new.get(key) for key in _MEANING) and not np.array_equal(mask, expected):
            raise BrokenPromiseError("another mask from a manifest that means the same")
        if old["profile"] == new.get("profile") and not np.array_equal(mask, expected):
            raise BrokenPromiseError("another mask, though the profile is the same")

    return case


def graph(ground: Ground, _seeds: Path) -> Case:
    """A damaged graph is refused by its hash; one whose hash was made right gives finite numbers or one line."""
    text = json.loads((ground.bundle / "manifest.json").read_bytes())
    image = _image()

    def case(rng: np.random.Generator, scratch: Path) -> None:
        folder = _linked(ground.bundle, scratch / "bundle")
        entry = mutate.pick(rng, text["graphs"])
        path = folder / entry["path"]
        old = path.read_bytes()
        damaged = mutate.data(rng, old)
        _write(path, damaged)
        fixed = rng.random() < 0.7
        if fixed:
            values = json.loads(json.dumps(text))
            listed = next(each for each in values["graphs"] if each["path"] == entry["path"])
            listed["sha256"], listed["bytes"] = hashlib.sha256(damaged).hexdigest(), len(damaged)
            _write(folder / "manifest.json", json.dumps(values).encode())
        predictor = Predictor(folder, "cpu", prompts_per_image=mutate.pick(rng, (None, 1)))
        _answer(predictor, image)
        Bundle.open(folder).verify()
        if not fixed and damaged != old:
            raise BrokenPromiseError("a damaged graph was opened")

    return case


def checkpoint(ground: Ground, seeds: Path) -> Case:
    """Weights that are loaded are those that were saved, unless the file was packed anew with right checksums."""
    seeds.mkdir(parents=True, exist_ok=True)
    state = torch.load(ground.checkpoint, weights_only=True)
    plain = ground.checkpoint.read_bytes()
    wrapped = io.BytesIO()
    torch.save({"model": state, "epoch": 3, "args": {"lr": 0.1}}, wrapped)
    legacy = io.BytesIO()
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    tensors = safetensors.torch.save(state)

    def case(rng: np.random.Generator, scratch: Path) -> None:
        kind = rng.random()
        if kind < 0.7:
            damaged, same = mutate.archive(rng, mutate.pick(rng, (plain, wrapped.getvalue())))
            path = scratch / mutate.pick(rng, ("x.pth", "x.pt"))
        elif kind < 0.8:
            damaged, same, path = mutate.data(rng, legacy.getvalue()), False, scratch / "x.pth"
        else:
            damaged, same, path = mutate.safetensors(rng, tensors), False, scratch / "x.safetensors"
        path.write_bytes(damaged)
        loaded = load_checkpoint(path).sam.state_dict()
        if same and any(not torch.equal(loaded[name], tensor) for name, tensor in state.items()):
            raise BrokenPromiseError("a damaged archive gave other weights")

    return case


def cache(ground: Ground, seeds: Path) -> Case:
    """A damaged entry is computed anew: embeddings are the same with it and without it."""
    image = _image()
    predictor = Predictor(ground.bundle, "cpu", cache=EmbeddingCache(seeds / "cache"))
    expected = predictor.encode(image).features
    (entry,) = (seeds / "cache").rglob("*.safetensors")
    content, relative = entry.read_bytes(), entry.relative_to(seeds / "cache")

    def case(rng: np.random.Generator, scratch: Path) -> None:
        shutil.copytree(seeds / "cache", scratch / "cache")
        os.chmod(scratch / "cache", 0o700)  # noqa: PTH101
        raw = rng.random() < 0.5
        damaged = mutate.data(rng, content) if raw else mutate.safetensors(rng, content[:-32])
        if not raw:
            damaged += hashlib.sha256(damaged).digest()
        (scratch / "cache" / relative).write_bytes(damaged)
        (scratch / "cache" / "embeddings" / "notes.txt").write_text("mine")
        predictor.cache = EmbeddingCache(scratch / "cache", max_bytes=mutate.pick(rng, (0, 10**6, 4 * 10**9)))
        embedding = predictor.encode(image)
        for note in embedding.notes:
            check_message(note, "note")
        if embedding.features.shape != expected.shape or not np.isfinite(embedding.features).all():
            raise BrokenPromiseError("no embedding came of it")
        if raw and not np.array_equal(embedding.features, expected):
            raise BrokenPromiseError("a damaged entry changed the embedding")
        if not (scratch / "cache" / "embeddings" / "notes.txt").is_file():
            raise BrokenPromiseError("a file that isn't the cache's was removed")

    return case


def tuned(ground: Ground, _seeds: Path) -> Case:
    """Damaged settings are ignored with one plain note; the mask stays."""
    bundle, image = Bundle.open(ground.bundle), _image()
    expected = _answer(Predictor(ground.bundle, "cpu"), image)
    save_tuned(bundle, Tuned("cpu", "fp32", 1, {}, 1.0))
    text = tuned_file().read_bytes()

    def case(rng: np.random.Generator, scratch: Path) -> None:
        tuned_file().parent.mkdir(parents=True, exist_ok=True)
        tuned_file().write_bytes(mutate.document(rng, text))
        predictor = Predictor(ground.bundle)
        for note in predictor.notes:
            check_message(note, "note")
        if not np.array_equal(_answer(predictor, image), expected):
            raise BrokenPromiseError("tuned settings changed the mask")

    return case


def _image() -> np.ndarray[Any, np.dtype[np.float32]]:
    rows, columns = np.mgrid[:80, :96]
    return (100 * np.exp(-(((rows - 35) / 18) ** 2 + ((columns - 45) / 22) ** 2)) + rows % 7).astype(np.float32)


def _answer(predictor: Predictor, image: Any) -> Any:
    answer = predictor.predict(predictor.encode(image), boxes=_BOX)
    if not np.isfinite(answer.scores).all() or answer.masks.shape != (1, 80, 96):
        raise BrokenPromiseError(f"masks of shape {answer.masks.shape} and scores {answer.scores}")
    return answer.masks


def _linked(bundle: Path, folder: Path) -> Path:
    """The bundle without copying its graphs; a file is replaced, never written into."""
    folder.mkdir()
    for file in bundle.iterdir():
        os.link(file, folder / file.name)
    return folder


def _write(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)
