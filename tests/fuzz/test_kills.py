"""Killed at any step on disk: what lies there is old or new and whole, and the same command mends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from samri.bundle import Bundle
from samri.errors import InputError
from samri.hashing import file_sha256
from samri.model import load_checkpoint
from samri_export.command import main as samri_export
from samri_runtime.run import main as samri_run
from samri_training.embed import main as samri_embed
from samri_training.prepare import main as samri_prepare
from samri_training.store import EmbeddingStore
from samri_training.train import main as samri_train
from tests.fuzz.kills import KILLED, in_child, killed_at
from tests.fuzz.targets_data import slices_with_masks, volumes_with_masks
from tests.fuzz.targets_files import check_run
from tests.support.scans import OBLIQUE, brain_like, save_nifti
from tests.support.stores import drawn_slices, write_store

MOST_STEPS = 400


@dataclass(frozen=True)
class Scenario:
    """A command that is killed: `before` makes what lies there, `check` looks at what it left, `done` at the end."""

    command: Callable[[Path], int]
    check: Callable[[Path], None]
    done: Callable[[Path], None]
    before: Callable[[Path], None] = lambda folder: None
    again: Callable[[Path], int] | None = None


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A scan, slices and stores; nothing writes into them."""
    folder = tmp_path_factory.mktemp("seeds")
    save_nifti(folder / "scan.nii.gz", brain_like((24, 20, 5)), sform=OBLIQUE)
    slices_with_masks(folder / "slices", 4)
    volumes_with_masks(folder / "volumes")
    sam = load_checkpoint(checkpoint).sam
    write_store(folder / "stores" / "training", sam, drawn_slices(4))
    write_store(folder / "stores" / "validation", sam, drawn_slices(2, seed=9))
    return folder


@pytest.fixture
def scenario(request: pytest.FixtureRequest, seeds: Path, bundle: Path, checkpoint: Path) -> Scenario:
    """By name."""
    made: dict[str, Callable[[], Scenario]] = {
        "prepare over a dataset": lambda: _prepare(seeds),
        "run": lambda: _run(seeds, bundle),
        "run again": lambda: _run(seeds, bundle, earlier=True),
        "embed": lambda: _embed(seeds, checkpoint),
        "export": lambda: _export(checkpoint),
        "export over a bundle": lambda: _export(checkpoint, earlier=bundle),
        "train": lambda: _train(seeds, checkpoint),
    }
    return made[request.param]()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["run", "run again", "embed"], indirect=True)
def test_a_kill_at_some_steps_leaves_old_or_new_and_the_same_command_mends_it(
    scenario: Scenario, tmp_path: Path
) -> None:
    for step in (1, 4, 9, 14, 19):
        _kill_and_mend(scenario, tmp_path / str(step), step)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "scenario",
    ["prepare over a dataset", "run", "run again", "embed", "export", "export over a bundle", "train"],
    indirect=True,
)
def test_a_kill_at_any_step_leaves_old_or_new_and_the_same_command_mends_it(scenario: Scenario, tmp_path: Path) -> None:
    broken: list[str] = []
    for step in range(1, MOST_STEPS):
        try:
            if not _kill_and_mend(scenario, tmp_path / str(step), step):
                break
        except AssertionError as error:
            said = " ".join(str(error).partition("\nassert ")[0].split())
            broken.append(f"step {step}: {said.partition(':')[0]}: ...{said[-200:]}")
        shutil.rmtree(tmp_path / str(step))
    else:
        broken.append(f"no end after {MOST_STEPS} steps")
    assert step > 5, "hardly a step was counted"
    assert not broken, f"{len(broken)} of {step} steps:\n" + "\n".join(broken)


def _kill_and_mend(scenario: Scenario, folder: Path, step: int) -> bool:
    """False when the command ends before that step."""
    folder.mkdir()
    scenario.before(folder)
    code, log = killed_at(step, lambda: scenario.command(folder), folder)
    assert code in (0, KILLED), f"it ended with {code}: {log[-1500:]}"
    if code == 0:
        scenario.done(folder)
        return False
    code, log = in_child(_asserting(lambda: scenario.check(folder)), folder)
    assert code == 0, f"after the kill: {log[-1500:]}"
    code, log = in_child(lambda: (scenario.again or scenario.command)(folder), folder)
    assert code == 0, f"the same command ended with {code}: {log[-1500:]}"
    code, log = in_child(_asserting(lambda: scenario.done(folder)), folder)
    assert code == 0, f"after the next run: {log[-1500:]}"
    return True


def _asserting(check: Callable[[], None]) -> Callable[[], int]:
    def run() -> int:
        check()
        return 0

    return run


def _call(command: click.Command, *arguments: object) -> int:
    result = CliRunner().invoke(command, [str(each) for each in arguments], prog_name=command.name)
    print(result.stderr, flush=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code


def _no_leftovers(folder: Path) -> None:
    """Nothing hidden, no lock, nothing unfinished anywhere below."""
    odd = (".part", ".journal", ".lock", ".tmp", ".unfinished")
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name[0] == "." or path.suffix in odd]
    assert not left, f"leftovers: {left}"


def _prepare(seeds: Path) -> Scenario:
    def prepare(folder: Path, seed: int) -> int:
        paths = ["-i", seeds / "volumes", "-o", folder / "data"]
        return _call(samri_prepare, *paths, "--seed", seed, "--overwrite")

    def seed_of(folder: Path) -> int:
        return int(json.loads((folder / "data" / "report.json").read_text())["settings"]["division"]["seed"])

    def before(folder: Path) -> None:
        code, log = in_child(lambda: prepare(folder, 1), folder)
        assert code == 0, log

    def check(folder: Path) -> None:
        images, masks = (sorted((folder / "data").rglob(f"*_{role}_*.nii.gz")) for role in ("img", "seg"))
        assert len(images) == len(masks) == 9, f"{len(images)} images and {len(masks)} masks"
        assert seed_of(folder) in (1, 2)

    def done(folder: Path) -> None:
        check(folder)
        assert seed_of(folder) == 2
        _no_leftovers(folder)

    return Scenario(lambda folder: prepare(folder, 2), check, done, before)


def _run(seeds: Path, bundle: Path, *, earlier: bool = False) -> Scenario:
    scan = seeds / "scan.nii.gz"

    def run(folder: Path, *box: int) -> int:
        options = ["-c", bundle, "-i", scan, "-o", folder / "out", "--slice", 2, "--provider", "cpu", "--no-cache"]
        return _call(samri_run, *options, "--box", *box)

    def before(folder: Path) -> None:
        if earlier:
            code, log = in_child(lambda: run(folder, 8, 8, 20, 19), folder)
            assert code == 0, log

    def check(folder: Path) -> None:
        provenance = folder / "out" / "scan_seg_.json"
        # Without it a reader knows that nothing there is whole.
        if provenance.exists():
            for name, sha256 in _hashes(json.loads(provenance.read_text())):
                if name != scan.name:
                    assert file_sha256(folder / "out" / name) == sha256, f"{name} is another run's"
            hidden = [path for path in (folder / "out").iterdir() if path.name.startswith(".")]
            for path in hidden:
                shutil.move(path, folder / f"aside-{path.name}")
            check_run(folder / "out", scan)
            for path in hidden:
                shutil.move(folder / f"aside-{path.name}", path)

    def done(folder: Path) -> None:
        check_run(folder / "out", scan)
        _no_leftovers(folder)

    return Scenario(lambda folder: run(folder, 3, 3, 15, 14), check, done, before)


def _hashes(values: Any) -> Iterator[tuple[str, str]]:
    """Names and SHA-256s of files, wherever provenance tells them."""
    if isinstance(values, dict):
        if isinstance(values.get("name"), str) and isinstance(values.get("sha256"), str) and "." in values["name"]:
            yield values["name"], values["sha256"]
        for key, value in values.items():
            if isinstance(value, str) and len(value) == 64 and key.endswith((".png", ".gz", ".json")):
                yield key, value
            yield from _hashes(value)
    elif isinstance(values, list):
        for value in values:
            yield from _hashes(value)


def _embed(seeds: Path, checkpoint: Path) -> Scenario:
    def embed(folder: Path) -> int:
        options = ["--checkpoint", checkpoint, "--batch-size", 1, "--shard-size", 2, "--device", "cpu"]
        return _call(samri_embed, "--data-dir", seeds / "slices", "--save-dir", folder / "store", *options)

    def check(folder: Path) -> None:
        try:
            opened = EmbeddingStore.open(folder / "store")
        except InputError:
            return
        assert len(list(opened)) == 4
        assert len(list(opened.verify())) == 2

    def done(folder: Path) -> None:
        check(folder)
        assert len(EmbeddingStore.open(folder / "store")) == 4
        _no_leftovers(folder)

    return Scenario(embed, check, done)


def _export(checkpoint: Path, *, earlier: Path | None = None) -> Scenario:
    def export(folder: Path) -> int:
        options = ["--verify", "off", *(["--overwrite"] if earlier else [])]
        return _call(samri_export, "-c", checkpoint, "-o", folder / "bundle", *options)

    def again(folder: Path) -> int:
        if earlier is None and (folder / "bundle").exists():
            return 0  # All was done but the tidying; without --overwrite a second export is refused.
        return export(folder)

    def before(folder: Path) -> None:
        if earlier:
            shutil.copytree(earlier, folder / "bundle")

    def check(folder: Path) -> None:
        assert earlier is None or (folder / "bundle").exists(), "the earlier bundle is gone"
        if (folder / "bundle").exists():
            Bundle.open(folder / "bundle").verify()

    def done(folder: Path) -> None:
        Bundle.open(folder / "bundle").verify()
        _no_leftovers(folder)

    return Scenario(export, check, done, before, again)


def _train(seeds: Path, checkpoint: Path) -> Scenario:
    def train(folder: Path) -> int:
        options = ["--embedding-dir", seeds / "stores", "--checkpoint", checkpoint, "--device", "cpu"]
        return _call(samri_train, *options, "--save-dir", folder / "run", "--epochs", 1, "--batch-size", 4)

    def again(folder: Path) -> int:
        if (folder / "run" / "last.pth").exists():
            return _call(samri_train, "--resume", folder / "run")
        return train(folder)

    def check(folder: Path) -> None:
        for path in (folder / "run").glob("*.json"):
            json.loads(path.read_text())
        for path in (folder / "run").glob("*.pth"):
            load_checkpoint(path)

    def done(folder: Path) -> None:
        check(folder)
        assert torch.load(folder / "run" / "last.pth", weights_only=True)["epoch"] == 1
        assert (folder / "run" / "best.pth").is_file()
        _no_leftovers(folder)

    return Scenario(train, check, done, again=again)
