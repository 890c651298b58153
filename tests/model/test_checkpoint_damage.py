"""Damaged and hostile checkpoint files: one line each, and nothing read that wasn't saved."""

from __future__ import annotations

import io
import os
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam

from samri.errors import CheckpointError
from samri.hashing import file_sha256
from samri.model import load_checkpoint, read_state_dict, read_weights
from tests.support.sams import SMALL, save_checkpoint, seeded_sam


@pytest.fixture(scope="module")
def sam() -> Sam:
    return seeded_sam(SMALL)


@pytest.fixture(scope="module")
def members(sam: Sam) -> dict[str, bytes]:
    """The parts of an ordinary checkpoint's zip archive."""
    stream = io.BytesIO()
    torch.save({"model": sam.state_dict(), "epoch": 3}, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_flipped_bit_is_found_wherever_it_is(sam: Sam, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "whole.pth", sam)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.file_size]
    flipped = tmp_path / "flipped.pth"
    for member in random.Random(1).sample(members, 8):
        place = whole.index(archive_bytes(path, member.filename))
        content = bytearray(whole)
        content[place + member.file_size // 2] ^= 1
        flipped.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"flipped\.pth: damaged, .* copy or download it again$"):
            load_checkpoint(flipped)
    assert load_checkpoint(path).sha256 == file_sha256(path)


def archive_bytes(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def test_a_flipped_bit_in_a_base_is_found(sam: Sam, tmp_path: Path) -> None:
    decoder = {name: weight for name, weight in sam.state_dict().items() if name.startswith("mask_decoder.")}
    torch.save(decoder, tmp_path / "decoder.pth")
    base = save_checkpoint(tmp_path / "base.pth", sam)
    content = bytearray(base.read_bytes())
    content[len(content) // 2] ^= 1
    base.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"base\.pth: damaged"):
        load_checkpoint(tmp_path / "decoder.pth", base=base)


def test_an_archive_that_was_saved_without_checksums_is_read(sam: Sam, tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save_checkpoint(tmp_path / "unchecked.pth", sam)
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_state_dict(path).keys() == sam.state_dict().keys()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes of this kind")
@pytest.mark.parametrize("name", ["pipe.pth", "pipe.safetensors"])
def test_a_named_pipe_is_refused_at_once(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"is a named pipe: give a regular file"):
        load_checkpoint(tmp_path / name)


def test_a_missing_file_says_where_checkpoints_are_had(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no such checkpoint file; .*segment-anything#model-checkpoints \(Apache"
    ):
        load_checkpoint(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    "beside",
    [
        {"epoch": np.float64(3.5), "best": np.float32(0.9), "step": np.int64(12)},
        {"random_state": np.random.RandomState(0).get_state()},
        {"names": np.array(["a", "b"])},
    ],
    ids=["numbers", "random state", "array"],
)
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_numpys_values_beside_the_weights_do_no_harm(
    beside: dict[str, Any], core: bytes, sam: Sam, tmp_path: Path
) -> None:
    torch.save({"model": sam.state_dict(), **beside}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as archive, zipfile.ZipFile(tmp_path / "tuned.pth", "w") as rewritten:
        for name in archive.namelist():
            # numpy 1 and 2 write different names.
            rewritten.writestr(name, archive.read(name).replace(b"numpy._core", core))
    state = read_state_dict(tmp_path / "tuned.pth")
    assert all(torch.equal(weight, state[name]) for name, weight in sam.state_dict().items())


def test_tensors_that_repeat_few_values_many_times_are_refused(sam: Sam, tmp_path: Path) -> None:
    state = dict(sam.state_dict())
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 1).expand(100_000, 10_000_000)
    torch.save(state, tmp_path / "expanded.pth")
    with pytest.raises(CheckpointError, match=r"expanded\.pth: its tensors claim more values than a file of"):
        load_checkpoint(tmp_path / "expanded.pth")


def test_an_archive_that_unpacks_to_many_times_its_size_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("archive/data/9999", bytes(100_000_000))
    with pytest.raises(CheckpointError, match=r"bomb\.pth: unpacks to many times its size"):
        load_checkpoint(tmp_path / "bomb.pth")


def test_a_dictionary_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "round.pth")
    with pytest.raises(CheckpointError, match=r"round\.pth: holds a dict, not a dictionary of weights"):
        load_checkpoint(tmp_path / "round.pth")


@pytest.mark.parametrize("content", [{"model": torch.zeros(3)}, {"model": [1]}, {"state_dict": {"a": {}}}, {3: 4}])
def test_something_else_where_a_dictionary_of_weights_belongs_is_named(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: no weights found in it; it holds (model|a|3)$"):
        load_checkpoint(tmp_path / "odd.pth")


def test_names_of_tensors_stay_on_one_line(tmp_path: Path) -> None:
    torch.save({"x\n\x1b[31m.weight": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"its weights are named x\?\?\[31m\.weight$"):
        load_checkpoint(tmp_path / "odd.pth")


def test_a_safetensors_file_under_another_name_is_read(sam: Sam, tmp_path: Path) -> None:
    save_file({name: weight.contiguous() for name, weight in sam.state_dict().items()}, tmp_path / "sam.bin")
    read = read_weights(tmp_path / "sam.bin")
    assert read.state.keys() == sam.state_dict().keys()
    assert read.sha256 == file_sha256(tmp_path / "sam.bin")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_pickle_is_read_or_gets_one_plain_line(seed: int, members: dict[str, bytes], tmp_path: Path) -> None:
    chance = random.Random(seed)
    path = tmp_path / "mutated.pth"
    for _ in range(15):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, mutated(content, chance) if name.endswith("data.pkl") else content)
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ") and str(error).isprintable() and len(str(error)) < 1000


def mutated(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(changed))
        if chance.random() < 0.6:
            changed[place] ^= 1 << chance.randrange(8)
        elif chance.random() < 0.5:
            del changed[place : place + chance.randrange(1, 9)]
        else:
            changed[place:place] = chance.randbytes(3)
    return bytes(changed)
