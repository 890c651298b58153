"""Names of torch devices, the same for all commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from samri.errors import InputError, ProviderError
from samri_training.devices import bf16_note, torch_device
from samri_training.train import Settings


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with two GPUs; no tensor is put on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "rank", "found"),
    [("auto", 0, "cuda:0"), ("auto", 1, "cuda:1"), ("cuda", 1, "cuda:1"), ("cuda:1", 0, "cuda:1"), ("cpu", 1, "cpu")],
)
def test_a_process_gets_the_gpu_of_its_number_or_the_one_that_was_named(name: str, rank: int, found: str) -> None:
    assert str(torch_device(name, rank)) == found


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "rank", "words"),
    [("cuda:2", 0, "finds 2 GPUs"), ("cuda", 2, "finds 2 GPUs"), ("cuda:1", 1, "every process needs its own")],
)
def test_a_gpu_that_is_not_there_or_not_free_is_refused(name: str, rank: int, words: str) -> None:
    with pytest.raises(ProviderError, match=words):
        torch_device(name, rank)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "xpu"])
def test_other_names_are_none(name: str) -> None:
    with pytest.raises(ProviderError, match=re.escape(f"unknown torch device {name!r}")):
        torch_device(name)
    with pytest.raises(InputError, match=r"device is auto, cpu, cuda, cuda:1 or mps"):
        Settings.of({"device": name}, "mine.yaml")


def test_a_numbered_gpu_is_a_setting_of_training() -> None:
    assert Settings.of({"device": "cuda:1"}, "mine.yaml").device == "cuda:1"


def test_a_processor_without_bf16_units_gets_a_note(tmp_path: Path) -> None:
    plain, modern, unknown = (tmp_path / name for name in ("plain", "modern", "unknown"))
    plain.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n")
    modern.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16\n")
    cpu = torch.device("cpu")
    note = bf16_note("bf16", cpu, plain)
    assert note is not None and "--amp" in note
    assert bf16_note("off", cpu, plain) is bf16_note("bf16", cpu, modern) is bf16_note("bf16", cpu, unknown) is None
