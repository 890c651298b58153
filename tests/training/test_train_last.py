"""A damaged `last.pth`, and two processes for one folder: one line each, and nothing is lost."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam

from samri.errors import CheckpointError, OutputError, SamriError
from samri.locking import exclusive
from samri_training.train import Settings, train
from samri_training.train._last import read_last, restore
from samri_training.train._processes import Processes
from samri_training.train._starting import LOCK
from samri_training.train._step import Training
from tests.support.stores import drawn_slices, write_store

pytestmark = pytest.mark.slow  # Whole runs.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_sam: Sam, checkpoint: Path) -> Path:
    """The folder of a run of one epoch. Don't write into it."""
    folder = tmp_path_factory.mktemp("runs")
    write_store(folder / "store" / "training", small_sam, drawn_slices(4))
    write_store(folder / "store" / "validation", small_sam, drawn_slices(1, seed=9))
    train(settings_of(folder, checkpoint, folder / "run"), say=lambda line: None)
    return folder / "run"


def settings_of(folder: Path, checkpoint: Path, save_dir: Path) -> Settings:
    return Settings(
        embedding_dir=folder / "store",
        checkpoint=checkpoint,
        save_dir=save_dir,
        epochs=1,
        batch_size=4,
        device="cpu",
        ema=0.9,
        lr=1e-3,
    )


@pytest.fixture
def begun(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every entry of nested dictionaries and lists; of many alike, such as parameters, the first two."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    for key, entry in pairs if len(pairs) < 40 else pairs[:2]:
        yield (*above, key)
        yield from places(entry, (*above, key))


def test_every_damaged_entry_is_one_line_about_the_file(
    begun: Path, checkpoint: Path, small_sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samri.model import SamDecoder

    path = begun / "last.pth"
    whole = torch.load(path, weights_only=True)
    read = {"path": whole}
    monkeypatch.setattr("samri_training.train._last.read_state_dict", lambda path: {})  # Has tests of its own.
    monkeypatch.setattr("samri_training.train._last.torch.load", lambda *args, **options: read["path"])
    settings = read_last(path).settings
    training = Training(SamDecoder(copy.deepcopy(small_sam)), settings, Processes(torch.device("cpu")), 1)
    restore(training, read_last(path))

    rng = np.random.default_rng(0)
    replacements = [torch.ones(3), torch.tensor(1.5), None, "text", [], {}, -1, float("nan"), True]
    accepted = set()
    for place in places({name: value for name, value in whole.items() if name != "model"}):
        for replacement in rng.permutation(np.arange(len(replacements)))[:5]:
            read["path"] = damaged = copy.copy(whole)
            for key in place[:-1]:
                damaged[key] = copy.copy(damaged[key])
                damaged = damaged[key]
            if repr(damaged[place[-1]]) == repr(replacements[replacement]):
                continue
            damaged[place[-1]] = replacements[replacement]
            try:
                restore(training, read_last(path))
            except CheckpointError as error:
                assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 600
            else:
                accepted.add(place)
    # What may have another value and stay sound: settings, records of the history, and what nothing reads.
    wrong = {place for place in accepted if place[0] not in ("settings", "history", "data")}
    assert wrong <= {("scheduler", "total_steps"), ("bad_in_a_row",), ("loss_scale", "dynamic")}, wrong


def test_a_cut_off_last_pth_beside_a_whole_best_pth_names_the_way_on(begun: Path) -> None:
    path = begun / "last.pth"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(CheckpointError) as caught:
        read_last(begun)
    assert f"--checkpoint {begun / 'best.pth'} and another --save-dir" in str(caught.value)
    (begun / "best.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError) as caught:
        read_last(begun)
    assert "best.pth" not in str(caught.value)


def test_a_file_of_safetensors_cannot_be_resumed(begun: Path, small_sam: Sam) -> None:
    from safetensors.torch import save_file

    save_file(dict(small_sam.state_dict()), begun / "other.safetensors")
    with pytest.raises(CheckpointError, match="only weights"):
        read_last(begun / "other.safetensors")


def test_a_second_process_for_a_folder_stops_and_changes_nothing(
    finished: Path, begun: Path, checkpoint: Path, tmp_path: Path
) -> None:
    before = {file.name: file.read_bytes() for file in begun.iterdir()}
    settings = settings_of(finished.parent, checkpoint, begun)
    with exclusive(begun / LOCK, "busy"):
        for options in ({"resume": begun}, {"resume": None}):
            with pytest.raises(OutputError, match="another samri-train is at work in"):
                train(settings, say=lambda line: None, **options)
    assert {file.name: file.read_bytes() for file in begun.iterdir()} == before
    # A lock whose holder was killed holds nobody.
    (begun / LOCK).touch()
    train(settings, resume=begun, say=lambda line: None)
    assert not (begun / LOCK).exists()


def test_a_run_that_cannot_begin_leaves_no_folder(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(SamriError):
        train(settings_of(finished.parent, tmp_path / "none.pth", tmp_path / "a" / "b"), say=lambda line: None)
    assert not (tmp_path / "a").exists()
