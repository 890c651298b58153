from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from samri.errors import InputError, OutputError
from samri_runtime.cli import ProgressBar, duration
from samri_training.embed import TorchEncoder, WorkShare, checkpoint_facts, embed, find_sources, main
from samri_training.embed._division import parse_share, share_from
from samri_training.store import EmbeddingStore, EncoderFacts
from tests.support.commands import call, start
from tests.support.files import contents
from tests.support.sams import SMALL, save_checkpoint, seeded_sam, with_other_decoder
from tests.support.slices import embed_slices, write_slices

PACKAGES = [str(Path(__file__).parents[2] / folder) for folder in (".", "runtime", "training")]


@pytest.fixture(scope="module")
def sam() -> Sam:
    return seeded_sam(SMALL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slices(tmp_path_factory.mktemp("data") / "slices", 7)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path, checkpoint: Path) -> dict[str, bytes]:
    """The files of a store that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    embed_slices(data, folder, "--checkpoint", checkpoint)
    return contents(folder)


def refused(result: Result, *words: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("samri-embed: error:")
    for word in words:
        assert word in line


def segment_anything_embedding(sam: Sam, image: np.ndarray) -> np.ndarray:
    """The published way: min-max to 8 bits, three channels, segment-anything's own predictor."""
    scaled = (image.astype(np.float64) - image.min()) / (image.max() - image.min())
    gray = np.round(scaled * 255).astype(np.uint8)
    predictor = SamPredictor(sam)
    predictor.set_image(np.stack([gray] * 3, axis=-1))
    return predictor.get_image_embedding()[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-3), ("fp32", 2e-5)])
def test_embeddings_are_those_of_segment_anything(
    tmp_path: Path, data: Path, checkpoint: Path, sam: Sam, precision: str, tolerance: float
) -> None:
    result = embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint, "--store-dtype", precision)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(tmp_path / "store")]
    store = EmbeddingStore.open(tmp_path / "store")
    assert len(store) == 7
    for stored, file in zip(store, sorted(data.glob("*_img_*")), strict=True):
        image = np.asarray(nib.load(file).dataobj)[..., 0]
        expected = segment_anything_embedding(sam, image)
        np.testing.assert_allclose(stored.features, expected, atol=tolerance * np.abs(expected).max())
        mask = np.asarray(nib.load(str(file).replace("_img_", "_seg_")).dataobj)[..., 0]
        np.testing.assert_array_equal(stored.mask, mask)
        assert file.name == f"{stored.name}.nii.gz"
        assert stored.case == file.name.partition("_img_")[0]
        assert stored.spacing == (0.5, 0.75)


def test_a_bundle_makes_the_store_that_its_checkpoint_makes(
    tmp_path: Path, data: Path, checkpoint: Path, bundle: Path
) -> None:
    by_torch, by_onnx = tmp_path / "torch", tmp_path / "onnx"
    assert embed_slices(data, by_torch, "--checkpoint", checkpoint, "--store-dtype", "fp32").exit_code == 0
    result = embed_slices(data, by_onnx, "--model", bundle, "--store-dtype", "fp32")
    assert result.exit_code == 0, result.output
    first, second = EmbeddingStore.open(by_torch), EmbeddingStore.open(by_onnx)
    assert first.info == second.info
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.features, other.features, atol=1e-4)
        np.testing.assert_array_equal(one.mask, other.mask)


def test_the_embedding_id_does_not_depend_on_the_decoder(tmp_path: Path, checkpoint: Path, sam: Sam) -> None:
    tuned = save_checkpoint(tmp_path / "tuned.pth", with_other_decoder(sam, 4))
    assert checkpoint_facts(tuned, "samri").embedding_id == checkpoint_facts(checkpoint, "samri").embedding_id
    for other in (checkpoint_facts(checkpoint, "medsam"), checkpoint_facts(checkpoint, "samri", "fp16")):
        assert other.embedding_id != checkpoint_facts(checkpoint, "samri").embedding_id


def test_splits_become_stores_of_their_own(tmp_path: Path, checkpoint: Path) -> None:
    write_slices(tmp_path / "data" / "a" / "training", 4)
    write_slices(tmp_path / "data" / "b" / "training", 3)
    write_slices(tmp_path / "data" / "b" / "validation", 2)
    result = embed_slices(tmp_path / "data", tmp_path / "store", "--checkpoint", checkpoint, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [Path(store["path"]).name for store in printed["stores"]] == ["training", "validation"]
    assert printed["slices"] == 9
    training = EmbeddingStore.open(tmp_path / "store" / "training")
    assert len(training) == 7
    assert training[0].name.startswith("a/training/")
    assert training[-1].case == "b/case0"
    assert call(main, "--save-dir", tmp_path / "store", "--verify").stdout.count("all whole") == 2


def test_slices_in_and_out_of_splits_are_not_guessed_about(tmp_path: Path, checkpoint: Path) -> None:
    write_slices(tmp_path / "data" / "training", 1)
    write_slices(tmp_path / "data" / "more", 1)
    refused(
        embed_slices(tmp_path / "data", tmp_path / "store", "--checkpoint", checkpoint),
        "more/case0_img_000",
        "move the slice",
    )


@pytest.mark.slow
def test_half_precision_encoding_is_another_encoder(tmp_path: Path, data: Path, checkpoint: Path) -> None:
    result = embed_slices(data, tmp_path / "half", "--checkpoint", checkpoint, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    half = EmbeddingStore.open(tmp_path / "half")
    full = TorchEncoder(checkpoint, "samri", "cpu")
    assert half.info.embedding_id != full.facts.embedding_id
    _, image = find_sources(data)[0].load(0, full.facts)
    assert image is not None
    reference = full.encode(image)[0]
    assert np.abs(half[0].features - reference).max() < 0.1 * np.abs(reference).max()


# --- many processes, stopped processes --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 5])
def test_any_number_of_parts_makes_the_same_store(
    tmp_path: Path, data: Path, checkpoint: Path, whole: dict[str, bytes], parts: int
) -> None:
    for part in reversed(range(parts)):
        result = embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint, "--part", f"{part}/{parts}")
        assert result.exit_code == 0, result.output
        assert ("still missing" in result.stderr) == (part > 0)
    assert contents(tmp_path / "store") == whole


class StopsAfter:
    """A real encoder, in a process that ends after so many batches."""

    def __init__(self, encoder: TorchEncoder, batches: int) -> None:
        self._encoder, self._left = encoder, batches
        self.facts, self.made_with, self.runs_on = encoder.facts, encoder.made_with, encoder.runs_on

    def encode(self, images: np.ndarray) -> np.ndarray:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return self._encoder.encode(images)


@pytest.mark.slow
def test_a_run_stopped_at_any_batch_goes_on_to_the_same_bytes(
    tmp_path: Path, data: Path, checkpoint: Path, whole: dict[str, bytes]
) -> None:
    encoder = TorchEncoder(checkpoint, "samri", "cpu")
    sources = find_sources(data)
    for stop in range(5):  # 3 + 3 + 1 slices are five batches.
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            embed(sources, folder, encoder.facts, StopsAfter(encoder, stop), batch_size=2, slices_per_shard=3)
        outcome = embed(sources, folder, encoder.facts, encoder, workers=stop % 3, batch_size=2)
        assert outcome.slices == 7 - [0, 2, 3, 5, 6][stop]
        assert contents(folder) == whole


def test_a_finished_store_costs_nothing_to_run_again(
    tmp_path: Path, data: Path, checkpoint: Path, whole: dict[str, bytes]
) -> None:
    embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint)
    result = embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint, "--json")
    assert json.loads(result.stdout)["slices"] == 0
    assert contents(tmp_path / "store") == whole


def command(data: Path, folder: Path, checkpoint: Path, *arguments: object) -> list[str]:
    options = ["--data-dir", data, "--save-dir", folder, "--checkpoint", checkpoint, "--device", "cpu", *arguments]
    return ["-m", "samri_training.embed", *(str(option) for option in options)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_with_sigkill_goes_on_to_the_same_bytes(tmp_path: Path, checkpoint: Path) -> None:
    data = write_slices(tmp_path / "data", 30)
    arguments = (
        "--data-dir",
        data,
        "--checkpoint",
        checkpoint,
        "--device",
        "cpu",
        "--batch-size",
        2,
        "--shard-size",
        8,
    )
    assert call(main, *arguments, "--save-dir", tmp_path / "whole").exit_code == 0
    folder = tmp_path / "killed"
    kills = 0
    for batches in (1, 6, 11):
        process = start(main, *arguments, "--save-dir", folder)
        while process.is_alive():
            finished = 4 * len(list(folder.glob("*.safetensors")))
            if finished + sum(journal_lines(path) - 1 for path in folder.glob("*.journal")) >= batches:
                process.kill()
                break
            time.sleep(0.001)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills
    assert call(main, *arguments, "--save-dir", folder).exit_code == 0
    assert contents(folder) == contents(tmp_path / "whole")


def journal_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:  # The shard was finished meanwhile.
        return 1


@pytest.mark.slow
def test_torchrun_divides_the_work(tmp_path: Path, data: Path, checkpoint: Path, whole: dict[str, bytes]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = command(data, tmp_path / "store", checkpoint, "--batch-size", 2, "--shard-size", 3)
    ended = subprocess.run([*torchrun, *arguments], env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "part 0/2" in ended.stderr
    assert "part 1/2" in ended.stderr
    assert contents(tmp_path / "store") == whole


@given(st.integers(0, 60), st.integers(1, 9))
def test_shares_leave_nothing_out_and_do_nothing_twice(pieces: int, count: int) -> None:
    parts = [WorkShare(index, count).of(range(pieces)) for index in range(count)]
    assert sorted(piece for part in parts for piece in part) == list(range(pieces))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 5), st.integers(1, 5))
def test_torchrun_within_an_array_counts_every_process_once(tasks: int, ranks: int) -> None:
    shares = {
        share_from(
            {
                **{"RANK": str(rank), "WORLD_SIZE": str(ranks), "SLURM_ARRAY_TASK_ID": str(3 + 2 * task)},
                **{"SLURM_ARRAY_TASK_COUNT": str(tasks), "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2"},
                "SLURM_ARRAY_TASK_MAX": str(3 + 2 * (tasks - 1)),
            }
        )
        for task in range(tasks)
        for rank in range(ranks)
    }
    assert shares == {WorkShare(index, tasks * ranks) for index in range(tasks * ranks)}


def test_one_process_alone_does_everything() -> None:
    assert share_from({}) == WorkShare(0, 1)
    assert share_from({"SLURM_ARRAY_TASK_ID": "5"}, WorkShare(1, 2)) == WorkShare(1, 2)


def test_some_tasks_of_an_array_repeated_have_to_be_named() -> None:
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "7"}
    with pytest.raises(InputError, match="--part i/n"):
        share_from({"SLURM_ARRAY_TASK_ID": "7", **array})
    with pytest.raises(InputError, match="RANK"):
        share_from({"RANK": "x"})
    with pytest.raises(InputError, match="is out of range"):
        share_from({"RANK": "2", "WORLD_SIZE": "2"})


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "1/0", "1/2/3"])
def test_a_part_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(ValueError, match="part"):
        parse_share(text)
    result = call(main, "--data-dir", "x", "--save-dir", "y", "--checkpoint", "z", "--part", text)
    assert result.exit_code == 2


# --- what bad input gets ----------------------------------------------------------------------------------------------


def test_a_store_of_another_encoder_is_not_added_to(tmp_path: Path, data: Path, checkpoint: Path) -> None:
    embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint, "--part", "0/2")
    before = contents(tmp_path / "store")
    other = save_checkpoint(tmp_path / "other.pth", seeded_sam(SMALL, seed=1))
    refused(embed_slices(data, tmp_path / "store", "--checkpoint", other), "another encoder", "small.pth", "other.pth")
    refused(
        embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint, "--profile", "medsam"),
        "preprocessing",
        "medsam",
    )
    refused(
        embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint, "--store-dtype", "fp32"),
        "holds fp16",
        "--store-dtype fp16",
    )
    assert contents(tmp_path / "store") == before


def test_data_that_grew_is_noticed(tmp_path: Path, checkpoint: Path) -> None:
    data = write_slices(tmp_path / "data", 2)
    embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint)
    write_slices(data / "more", 1)
    refused(
        embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint), "started for 2 slices", "there are 3 now"
    )


def test_a_slice_that_cannot_be_used_is_named_and_the_rest_kept(tmp_path: Path, checkpoint: Path) -> None:
    data = write_slices(tmp_path / "data", 6)
    bad = data / "case1_img_004.nii.gz"
    image = nib.load(bad)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    good = bad.read_bytes()
    voxels[...] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), bad)
    refused(embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint), "case1_img_004.nii.gz", "NaN")
    bad.write_bytes(good)
    result = embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint, "--json")
    assert json.loads(result.stdout)["slices"] == 3
    assert len(EmbeddingStore.open(tmp_path / "store")) == 6


def test_a_shard_that_was_damaged_is_found_and_made_again(
    tmp_path: Path, data: Path, checkpoint: Path, whole: dict[str, bytes]
) -> None:
    embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint)
    shard = tmp_path / "store" / "shard-000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    refused(call(main, "--save-dir", tmp_path / "store", "--verify"), "shard-000001.safetensors", "SHA-256")
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint), "shard-000001.safetensors", "delete it")
    shard.unlink()
    assert embed_slices(data, tmp_path / "store", "--checkpoint", checkpoint).exit_code == 0
    assert contents(tmp_path / "store") == whole


def test_too_small_a_disk_is_noticed_before_the_work(tmp_path: Path, data: Path) -> None:
    facts = EncoderFacts("e" * 32, "samri", 128, (1 << 30, 64, 64), "vit_x", "fp32", "x.pth", "0" * 64)
    with pytest.raises(OutputError, match=r"has room for .* GB, and the embeddings to come take 61572\.7 GB"):
        embed(find_sources(data), tmp_path / "store", facts, None)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--checkpoint"),
        (["--checkpoint", "a.pth", "--model", "b"], "--checkpoint"),
        (["--model", "b", "--profile", "sam"], "--profile"),
        (["--model", "b", "--device", "npu"], "npu"),
        (["--model", "b", "--device", "cpu:1"], "cpu:1"),
        (["--model", "b", "--device", "cpu", "--provider", "cpu"], "--device is for --checkpoint"),
        (["--checkpoint", "a.pth", "--provider", "cpu"], "--provider is for --model"),
        (["--checkpoint", "a.pth", "--precision", "int8"], "int8"),
        (["--checkpoint", "medsam_vit_b.pth"], "--profile medsam"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, data: Path, arguments: list[str], word: str) -> None:
    refused(call(main, "--data-dir", data, "--save-dir", tmp_path / "s", *arguments), word, code=2)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("device", "word"), [("cuda", "0 GPUs"), ("tpu9", "tpu9"), ("mps", "Apple"), ("xpu", "xpu")])
def test_a_device_that_is_not_there_is_named(
    tmp_path: Path, data: Path, checkpoint: Path, device: str, word: str
) -> None:
    if (device == "cuda" and torch.cuda.is_available()) or (device == "mps" and torch.backends.mps.is_available()):
        pytest.skip("this machine has one")
    arguments = ("--data-dir", data, "--save-dir", tmp_path / "s", "--checkpoint", checkpoint, "--device", device)
    refused(call(main, *arguments), device, word)


def test_missing_things_are_named(tmp_path: Path, data: Path, checkpoint: Path) -> None:
    refused(call(main, "--save-dir", tmp_path, "--checkpoint", checkpoint), "--data-dir", code=2)
    refused(embed_slices(tmp_path / "no", tmp_path / "s", "--checkpoint", checkpoint), "not a folder")
    refused(embed_slices(data, tmp_path / "s", "--checkpoint", tmp_path / "no.pth"), "no.pth")
    refused(embed_slices(data, tmp_path / "s", "--model", tmp_path / "no"), "no bundle")
    (tmp_path / "empty").mkdir()
    refused(embed_slices(tmp_path / "empty", tmp_path / "s", "--checkpoint", checkpoint), "holds no slices")
    refused(call(main, "--save-dir", tmp_path / "empty", "--verify"), "holds no embedding store")
    (tmp_path / "file").write_text("")
    refused(call(main, "--data-dir", data, "--save-dir", tmp_path / "file", "--checkpoint", checkpoint), "file")


def test_progress_tells_rate_and_time_left() -> None:
    with ProgressBar(100, "slice", 40) as progress:
        assert progress.line() == "40 of 100 slices, 0 per second, unknown time left"
        progress.skip(10)
        progress.advance(25)
        assert progress.line().startswith("75 of 100 slices, ")
        assert progress.line().endswith(" 0 s left")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(7, "7 s"), (89, "89 s"), (95, "2 min"), (7000, "117 min"), (11_520, "3 h 12 min"), (190_000, "2 d 5 h")],
)
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_shard_is_an_ordinary_safetensors_file(whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "shard.safetensors").write_bytes(whole["shard-000000.safetensors"])
    assert load_file(tmp_path / "shard.safetensors")["features"].shape == (3, 64, 16, 16)


# --- SLURM ------------------------------------------------------------------------------------------------------------

RECIPES = Path(__file__).parents[2] / "training" / "samri_training" / "slurm"


@pytest.mark.parametrize("script", sorted(path.name for path in RECIPES.glob("embed_*.sh")))
def test_scripts_say_how_they_are_used(script: str) -> None:
    ended = subprocess.run(["bash", RECIPES / script], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "usage: sbatch" in ended.stderr


@pytest.mark.slow
def test_the_array_script_divides_the_work(
    tmp_path: Path, data: Path, checkpoint: Path, whole: dict[str, bytes]
) -> None:
    """The script itself, as SLURM runs it; without a GPU, the options that it leaves to the caller say so."""
    installed = tmp_path / "bin"
    installed.mkdir()
    (installed / "samri-embed").write_text(f'#!/bin/sh\nexec {sys.executable} -m samri_training.embed "$@"\n')
    (installed / "samri-embed").chmod(0o755)
    for task in (4, 3):
        array = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"}
        path = os.pathsep.join([str(installed), os.environ["PATH"]])
        options = ["--device", "cpu", "--batch-size", "2", "--shard-size", "3"]
        ended = subprocess.run(
            ["bash", RECIPES / "embed_array.sh", data, tmp_path / "store", checkpoint, *options],
            env={**environment(), **array, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert f"part {task - 3}/2" in ended.stderr
    assert contents(tmp_path / "store") == whole
