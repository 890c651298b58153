"""What training reads: stores and their journals, published caches, volumes to prepare, runs to resume."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from samri.model import load_checkpoint
from samri_training.embed import checkpoint_facts
from samri_training.embed import main as samri_embed
from samri_training.prepare import main as samri_prepare
from samri_training.published import open_embeddings
from samri_training.store import EmbeddingStore, ShardWriter
from samri_training.store._shard_writer import journal_line
from samri_training.train import main as samri_train
from tests.fuzz import mutate
from tests.fuzz.ground import Ground
from tests.fuzz.trial import BrokenPromiseError, Case, invoke
from tests.support.scans import OBLIQUE, save_nifti
from tests.support.stores import drawn_slices, write_store


def store(ground: Ground, seeds: Path) -> Case:
    """A store that opens and verifies gives the slices that were stored: all that is used is under a checksum."""
    whole = write_store(seeds / "store", load_checkpoint(ground.checkpoint).sam, drawn_slices(5))
    expected = list(_contents(EmbeddingStore.open(whole)))
    info = EmbeddingStore.open(whole).info
    names = sorted(file.name for file in whole.iterdir())

    def case(rng: np.random.Generator, scratch: Path) -> None:
        folder = Path(shutil.copytree(whole, scratch / "store"))
        path = folder / mutate.pick(rng, names)
        content = path.read_bytes()
        if path.suffix == ".json":
            path.write_bytes(mutate.document(rng, content))
        else:
            path.write_bytes((mutate.safetensors if rng.random() < 0.4 else _small_tables)(rng, content))
        opened = EmbeddingStore.open(folder)
        found = list(_contents(opened))
        # The name of the checkpoint, for people, is all that may differ.
        for name in ("embedding_id", "profile", "image_size", "embedding_shape", "dtype", "encoder_precision"):
            if getattr(opened.info, name) != getattr(info, name):
                raise BrokenPromiseError(f"a damaged store opened with another {name}: {getattr(opened.info, name)!r}")
        if found != expected:
            other = {
                name
                for row, right in zip(found, expected, strict=False)
                for name, one, two in zip(_ROW, row, right, strict=True)
                if one != two
            }
            raise BrokenPromiseError(f"a damaged store gave another {', '.join(sorted(other)) or 'number of slices'}")
        list(opened.verify())

    return case


_ROW = ("name", "case", "spacing", "shape", "features", "mask")


def journal(ground: Ground, seeds: Path) -> Case:
    """Whatever a kill and a bad disk left of a shard, `samri-embed` ends with the same store, or refuses."""
    data = slices_with_masks(seeds / "data", 5)
    options: list[object] = ["--checkpoint", ground.checkpoint, "--batch-size", 2, "--shard-size", 3, "--device", "cpu"]

    def embed(folder: Path) -> int:
        return invoke(samri_embed, "--data-dir", data, "--save-dir", folder, *options).exit_code

    class KilledError(Exception):
        pass

    def killed(_self: Any, _made_with: Any) -> None:
        raise KilledError

    assert embed(seeds / "whole") == 0
    expected = {file.name: file.read_bytes() for file in (seeds / "whole").glob("*.safetensors")}
    seal, ShardWriter.seal = ShardWriter.seal, killed  # type: ignore[assignment,method-assign]
    with contextlib.suppress(KilledError):
        embed(seeds / "begun")
    ShardWriter.seal = seal  # type: ignore[method-assign]
    names = sorted(file.name for file in (seeds / "begun").iterdir())
    assert any(name.endswith(".journal") for name in names), names

    def case(rng: np.random.Generator, scratch: Path) -> None:
        folder = Path(shutil.copytree(seeds / "begun", scratch / "store"))
        path = folder / mutate.pick(rng, names)
        content = path.read_bytes()
        forged = False
        if path.suffix == ".journal" and rng.random() < 0.7:
            lines = content.splitlines(keepends=True)
            at = int(rng.integers(len(lines)))
            checksum, _, text = lines[at].partition(b" ")
            other = mutate.tree(rng, json.loads(text))
            forged = rng.random() < 0.3  # With a checksum of its own, as no disk does it: any end but a traceback.
            lines[at] = journal_line(other) if forged else checksum + b" " + journal_line(other).partition(b" ")[2]
            path.write_bytes(b"".join(lines))
        else:
            path.write_bytes((mutate.document if path.suffix == ".json" else mutate.data)(rng, content))
        if embed(folder) == 0 and not forged:
            found = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
            if found != expected:
                raise BrokenPromiseError("a store that was resumed differs from one that wasn't interrupted")
            left = [file.name for file in folder.iterdir() if file.suffix in (".part", ".journal")]
            if left:
                raise BrokenPromiseError(f"a finished store holds {left}")

    return case


def published(ground: Ground, seeds: Path) -> Case:
    """A published cache gives numbers of its encoder's shape, or refuses; its size stays in proportion."""
    facts = checkpoint_facts(ground.checkpoint, "samri")
    seeds.mkdir(parents=True, exist_ok=True)
    features = np.random.default_rng(0).standard_normal((1, *facts.embedding_shape), dtype=np.float32)
    mask = np.zeros((1, 30, 25))
    mask[0, 3:9, 4:12] = 2
    npz, npy, pt, odd = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(npz, img=features, mask=mask, ori_size=mask.shape[1:])
    np.save(npy, features)
    torch.save({"img": torch.from_numpy(features), "mask": torch.from_numpy(mask)}, pt)
    torch.save({"img": torch.from_numpy(features), "mask": torch.ones(1).expand(10**5, 10**7)}, odd)
    save_nifti(seeds / "mask.nii.gz", mask[0].astype(np.uint8)[..., None], sform=OBLIQUE)

    def case(rng: np.random.Generator, scratch: Path) -> None:
        suffix, content = mutate.pick(rng, ((".npz", npz), (".npz", npz), (".npy", npy), (".pt", pt), (".pt", odd)))
        zipped = suffix != ".npy"
        damaged = mutate.archive(rng, content.getvalue())[0] if zipped else mutate.data(rng, content.getvalue())
        (scratch / f"a_img_0{suffix}").write_bytes(damaged)
        if not zipped:
            shutil.copy(seeds / "mask.nii.gz", scratch / "a_seg_0.nii.gz")
        for at in range(len(opened := open_embeddings(scratch, facts))):
            if opened[at].features.shape != facts.embedding_shape:
                raise BrokenPromiseError(f"an embedding of shape {opened[at].features.shape}")

    return case


def prepare(_ground: Ground, seeds: Path) -> Case:
    """`samri-prepare` makes a dataset as a whole, or none."""
    volumes_with_masks(seeds)

    def case(rng: np.random.Generator, scratch: Path) -> None:
        folder = Path(shutil.copytree(seeds, scratch / "data"))
        for _ in range(mutate.pick(rng, (1, 1, 2))):
            path = mutate.pick(rng, sorted(folder.glob("*.nii")))
            path.write_bytes(mutate.nifti(rng, path.read_bytes()))
        if rng.random() < 0.2:
            (folder / "splits").mkdir()
            (folder / "splits" / "train.txt").write_bytes(mutate.data(rng, b"p0\np1\n"))
            (folder / "splits" / "val.txt").write_bytes(mutate.data(rng, b"p2\n"))
        if rng.random() < 0.2:
            (folder / "dataset.json").write_bytes(mutate.document(rng, b'{"labels": {"background": 0, "liver": 1}}'))
        options = ["--skip-bad"] if rng.random() < 0.4 else []
        output = scratch / "out"
        if invoke(samri_prepare, "-i", folder, "-o", output, *options).exit_code:
            if output.exists():
                raise BrokenPromiseError("a failed samri-prepare left its output")
            return
        report = json.loads((output / "report.json").read_text())
        images, masks = (sorted(output.rglob(f"*_{role}_*.nii.gz")) for role in ("img", "seg"))
        if not images or len(images) != len(masks) or not report:
            raise BrokenPromiseError(f"{len(images)} images and {len(masks)} masks")
        for mask in masks:
            if not np.asanyarray(nib.load(mask).dataobj).any():
                raise BrokenPromiseError(f"an empty mask: {mask.name}")

    return case


def resume(ground: Ground, seeds: Path) -> Case:
    """A damaged `last.pth`, log or setting never resumes, except as the run that it was."""
    sam = load_checkpoint(ground.checkpoint).sam
    write_store(seeds / "stores" / "training", sam, drawn_slices(4))
    write_store(seeds / "stores" / "validation", sam, drawn_slices(2, seed=9))
    options: list[object] = ["--embedding-dir", seeds / "stores", "--checkpoint", ground.checkpoint, "--device", "cpu"]
    assert invoke(samri_train, *options, "--save-dir", seeds / "run", "--epochs", 1, "--batch-size", 4).exit_code == 0
    run = seeds / "run"
    names = ["last.pth"] * 4 + sorted(file.name for file in run.iterdir() if file.suffix in (".json", ".pth", ".csv"))
    state = torch.load(run / "last.pth", weights_only=True)

    def case(rng: np.random.Generator, scratch: Path) -> None:
        folder = Path(shutil.copytree(run, scratch / "run"))
        path = folder / mutate.pick(rng, names)
        content = path.read_bytes()
        same = True
        if path.suffix == ".json":
            path.write_bytes(mutate.document(rng, content))
        elif path.name == "last.pth" and rng.random() < 0.5:
            torch.save(_other_state(rng, state), path)
            same = False
        elif path.suffix == ".pth":
            damaged, same = mutate.archive(rng, content)
            path.write_bytes(damaged)
        else:
            path.write_bytes(mutate.data(rng, content))
        more = ["--epochs", 2] if rng.random() < 0.3 else []
        result = invoke(samri_train, "--resume", folder, *more)
        hidden = [each.name for each in folder.iterdir() if each.name.startswith(".")]
        if hidden:
            raise BrokenPromiseError(f"samri-train left {hidden}")
        resumed = result.exit_code == 0 and path.name == "last.pth" and not more
        if resumed and same and _members(path.read_bytes()) != _members(content):
            raise BrokenPromiseError("a run was resumed from a damaged last.pth")

    return case


def _members(archive: bytes) -> list[tuple[str, bytes]]:
    """Names and contents: a zip also has bytes that nothing reads, such as the times of its members."""
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        return [(info.filename, members.read(info)) for info in members.infolist()]


def _other_state(rng: np.random.Generator, state: dict[str, Any]) -> dict[str, Any]:
    """A run's state in which something has another type or value, as no disk damages it, but an attacker or a bug."""
    new = dict(state)
    odd: list[Any] = [
        torch.zeros(3),
        torch.zeros(()),
        None,
        [],
        {},
        "text",
        -1,
        10**12,
        float("nan"),
        True,
        [1],
        {"a": 1},
    ]
    key = mutate.pick(rng, sorted(new))
    inside = new[key]
    if isinstance(inside, dict) and inside and rng.random() < 0.7:
        inside = dict(inside)
        part = mutate.pick(rng, sorted(inside, key=str))
        if rng.random() < 0.2:
            del inside[part]
        else:
            inside[part] = mutate.pick(rng, odd)
        new[key] = inside
    elif isinstance(inside, list) and inside and isinstance(inside[0], dict) and rng.random() < 0.7:
        entry = dict(inside[0])
        entry[mutate.pick(rng, sorted(entry))] = mutate.pick(rng, odd)
        new[key] = [entry, *inside[1:]]
    elif rng.random() < 0.2:
        del new[key]
    else:
        new[key] = mutate.pick(rng, odd)
    return new


def _contents(opened: EmbeddingStore) -> list[tuple[Any, ...]]:
    return [
        (each.name, each.case, tuple(each.spacing), each.shape, each.features.tobytes(), each.mask.tobytes())
        for each in opened
    ]


def _small_tables(rng: np.random.Generator, content: bytes) -> bytes:
    """A bit flipped in the last kilobytes, where names, sizes and distances lie, or anywhere."""
    if rng.random() < 0.3:
        return mutate.data(rng, content)
    return content[:-2000] + mutate.flipped(rng, content[-2000:])


def slices_with_masks(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    for index in range(count):
        shape = (30 + 3 * index, 34, 1)
        mask = np.zeros(shape, np.uint8)
        mask[5:15, 10:25] = 1 + index % 2
        save_nifti(
            folder / f"c{index // 2}_img_{index:03d}.nii.gz", rng.integers(0, 900, shape, dtype=np.int16), sform=OBLIQUE
        )
        save_nifti(folder / f"c{index // 2}_seg_{index:03d}.nii.gz", mask, sform=OBLIQUE)
    return folder


def volumes_with_masks(folder: Path) -> Path:
    """Three patients' volumes with their label maps, as `samri-prepare` takes them."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for patient in range(3):
        labels = np.zeros((16, 14, 3), np.uint8)
        labels[3:12, 4:11] = 1 + patient % 2
        save_nifti(folder / f"p{patient}_img_.nii", rng.integers(0, 900, labels.shape, dtype=np.int16), sform=OBLIQUE)
        save_nifti(folder / f"p{patient}_seg_.nii", labels, sform=OBLIQUE)
    return folder
