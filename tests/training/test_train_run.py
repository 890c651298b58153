from __future__ import annotations

import hashlib
import importlib.util
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from segment_anything.modeling import Sam

from samri.errors import InputError
from samri.model import build_sam, load_checkpoint
from samri_training.store import EmbeddingStore
from samri_training.train import Settings, main, train
from samri_training.train._records import best_entry
from tests.support.sams import SMALL, save_checkpoint, seeded_sam
from tests.support.stores import drawn_slices, write_store

pytestmark = pytest.mark.slow  # Whole runs: together they take longer than all other fast tests.

RunTrain = Callable[..., Result]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, small_sam: Sam) -> Path:
    """A folder with a training and a validation store."""
    folder = tmp_path_factory.mktemp("stores")
    write_store(folder / "training", small_sam, drawn_slices(10))
    write_store(folder / "validation", small_sam, drawn_slices(3, seed=9))
    return folder


@pytest.fixture
def run_train(stores: Path, checkpoint: Path, tmp_path: Path) -> RunTrain:
    """`samri-train` on the stores into `tmp_path/run`, with further options."""

    def run(*options: Any, bare: bool = False) -> Result:
        usual: list[Any] = ["--embedding-dir", stores, "--checkpoint", checkpoint, "--save-dir", tmp_path / "run"]
        usual += ["--device", "cpu", "--batch-size", 4, "--lr", "1e-3"]
        pairs = zip(usual[::2], usual[1::2], strict=True)
        own = [] if bare else [each for pair in pairs if pair[0] not in options for each in pair]
        return CliRunner().invoke(main, [str(each) for each in (*own, *options)])

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, stores: Path, checkpoint: Path) -> Path:
    """A run of one epoch, not to be written into."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    settings = Settings(
        embedding_dir=stores, checkpoint=checkpoint, save_dir=folder, epochs=1, batch_size=4, lr=1e-3, device="cpu"
    )
    train(settings, say=lambda line: None)
    return folder


@pytest.fixture
def begun(finished: Path, tmp_path: Path) -> Path:
    """That run in a folder of the test's own."""
    return shutil.copytree(finished, tmp_path / "run")


def weights(path: Path) -> torch.Tensor:
    state = load_checkpoint(path).sam.state_dict()
    return torch.cat([state[name].flatten() for name in sorted(state)])


def logs(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "logs.json").read_text())
    return values


def without_time(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if "second" not in key} for entry in epochs]


def test_a_run_leaves_its_weights_and_its_records(run_train: RunTrain, tmp_path: Path) -> None:
    result = run_train("--epochs", 2, "--json")
    assert result.exit_code == 0, result.stderr
    outcome = json.loads(result.stdout)
    folder = tmp_path / "run"
    assert outcome["best"] == str(folder / "best.pth")
    names = {"best.pth", "last.pth", "logs.json", "args.json", "environment.txt", "curves.png"}
    assert {file.name for file in folder.iterdir()} == names
    epochs = logs(folder)["epochs"]
    assert [entry["epoch"] for entry in epochs] == [0, 1, 2]
    assert epochs[1]["samples"] == 10
    assert epochs[0]["val_masks"] == 6
    arguments = json.loads((folder / "args.json").read_text())
    assert arguments["settings"]["lr"] == 1e-3
    assert len(arguments["git_commit"]) > 3
    assert arguments["trained_parameters"] < arguments["parameters"] / 2
    assert f"torch: {torch.__version__}" in (folder / "environment.txt").read_text()
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_best_is_a_plain_state_dict_that_segment_anything_loads(run_train: RunTrain, tmp_path: Path) -> None:
    # Without validation the last of one epoch is the best, whether or not it gained anything.
    assert run_train("--epochs", 1, "--val-every", 0).exit_code == 0
    state = torch.load(tmp_path / "run" / "best.pth", weights_only=True)
    sam = build_sam(SMALL)  # segment-anything's own classes.
    assert sam.load_state_dict(state, strict=True)
    before = seeded_sam(SMALL).state_dict()
    changed = {name.partition(".")[0] for name in state if not torch.equal(state[name], before[name])}
    assert changed == {"mask_decoder"}


@pytest.mark.slow
def test_both_checkpoints_are_exported_as_they_are(run_train: RunTrain, tmp_path: Path) -> None:
    from samri_export import export_bundle

    assert run_train("--epochs", 1).exit_code == 0
    for name in ("best", "last"):
        export_bundle(tmp_path / "run" / f"{name}.pth", tmp_path / name, profile="samri", verify="off")
        assert (tmp_path / name / "manifest.json").is_file()


def test_a_resumed_run_goes_on_with_the_same_curve_bit_for_bit(run_train: RunTrain, tmp_path: Path) -> None:
    options = ("--prompts", "alternate", "--ema", 0.9, "--scheduler", "cosine", "--warmup-steps", 3, "--epochs", 3)
    assert run_train(*options).exit_code == 0
    whole = tmp_path / "whole"
    shutil.move(tmp_path / "run", whole)

    stop_after(2, lambda: run_train(*options))
    result = run_train("--resume", tmp_path / "run", bare=True)
    assert result.exit_code == 0, result.stderr
    assert "after epoch 2" in result.stderr
    for name in ("best.pth", "last.pth"):
        assert torch.equal(weights(tmp_path / "run" / name), weights(whole / name))
    assert without_time(logs(tmp_path / "run")["epochs"]) == without_time(logs(whole)["epochs"])


def stop_after(epoch: int, action: Callable[[], object]) -> None:
    """Run `action` until that epoch is on disk, then interrupt it, as Ctrl-C would."""
    from samri_training.train import _run

    save_last = _run.save_last  # type: ignore[attr-defined]

    def save_and_stop(*arguments: Any) -> None:
        save_last(*arguments)
        if arguments[3] == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run, "save_last", save_and_stop)
        action()


@pytest.mark.parametrize("slash", ["", "/", "/last.pth"])
def test_a_run_is_found_with_or_without_its_slash_and_after_a_move(
    run_train: RunTrain, begun: Path, slash: str
) -> None:
    result = run_train("--resume", f"{begun}{slash}", bare=True)
    assert result.exit_code == 0, result.stderr
    assert "after epoch 1" in result.stderr
    assert result.stdout.strip() == str(begun / "best.pth")


def test_a_finished_run_may_be_given_more_epochs(run_train: RunTrain, begun: Path) -> None:
    assert run_train("--resume", begun, "--epochs", 2, bare=True).exit_code == 0
    assert [entry["epoch"] for entry in logs(begun)["epochs"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", "0.5"], "was trained with lr 0.001, not 0.5"),
        (["--seed", "3"], "was trained with seed 0, not 3"),
        (["--batch-size", "2"], "took 4 slices per step"),
        (["--save-dir", "elsewhere"], "continues in its own folder"),
    ],
)
def test_a_resumed_run_refuses_to_leave_its_curve(
    run_train: RunTrain, begun: Path, options: list[str], words: str
) -> None:
    result = run_train("--resume", begun, *options, bare=True)
    assert_one_line(result, words)


def test_a_resume_with_other_slices_of_the_same_number_is_refused(
    run_train: RunTrain, begun: Path, stores: Path, tmp_path: Path, small_sam: Sam
) -> None:
    for split in ("training", "validation"):
        other = shutil.copytree(stores, tmp_path / f"other_{split}")
        shutil.rmtree(other / split)
        slices = drawn_slices(10, cases=2) if split == "training" else drawn_slices(3, seed=9, cases=2)
        write_store(other / split, small_sam, slices)
        result = run_train("--resume", begun, "--embedding-dir", other, "--epochs", 2, bare=True)
        words = {"training": "was trained on 10 other slices", "validation": "was validated on other slices"}
        assert_one_line(result, words[split])


def test_a_resume_finds_its_slices_in_a_store_that_was_moved(
    run_train: RunTrain, begun: Path, stores: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(stores, tmp_path / "moved")
    result = run_train("--resume", begun, "--embedding-dir", moved, "--epochs", 2, bare=True)
    assert result.exit_code == 0, result.stderr


def test_the_hash_of_the_first_checkpoint_survives_every_resume(
    run_train: RunTrain, begun: Path, checkpoint: Path
) -> None:
    for epochs in (2, 3):
        assert run_train("--resume", begun, "--epochs", epochs, bare=True).exit_code == 0
    arguments = json.loads((begun / "args.json").read_text())
    assert arguments["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def test_validation_that_takes_slices_from_a_begun_run_is_refused_for_that_reason(
    run_train: RunTrain, stores: Path, tmp_path: Path
) -> None:
    alone, run = stores / "training", tmp_path / "run"
    assert run_train("--embedding-dir", alone, "--epochs", 1, "--val-every", 0).exit_code == 0
    more = ("--resume", run, "--epochs", 2, "--val-every", 1)
    assert_one_line(run_train(*more, bare=True), "without validation", "--val-embedding-dir")
    result = run_train(*more, "--val-embedding-dir", stores / "validation", bare=True)
    assert result.exit_code == 0, result.stderr


def test_held_out_slices_are_not_trained_on_after_a_resume(run_train: RunTrain, stores: Path, tmp_path: Path) -> None:
    assert run_train("--embedding-dir", stores / "training", "--epochs", 1).exit_code == 0
    result = run_train("--resume", tmp_path / "run", "--epochs", 2, "--val-every", 0, bare=True)
    assert_one_line(result, "holds slices out for validation", "--val-every 0")


def test_a_run_that_ended_before_its_first_epoch_may_be_begun_anew(
    run_train: RunTrain, stores: Path, tmp_path: Path
) -> None:
    stop_after(0, run_train)
    folder = tmp_path / "run"
    assert [entry["epoch"] for entry in logs(folder)["epochs"]] == [0]
    otherwise = ("--targets", "nearest-exact", "--epochs", 1)
    assert_one_line(run_train("--resume", folder, *otherwise, bare=True), "begin anew with --save-dir")
    result = run_train(*otherwise)
    assert result.exit_code == 0, result.stderr
    assert [entry["epoch"] for entry in logs(folder)["epochs"]] == [0, 1]
    assert json.loads((folder / "args.json").read_text())["settings"]["targets"] == "nearest-exact"


def test_the_same_step_may_be_shared_otherwise_after_a_resume(run_train: RunTrain, begun: Path) -> None:
    options = ("--epochs", 2, "--batch-size", 2, "--accumulate", 2)
    assert run_train("--resume", begun, *options, bare=True).exit_code == 0


def test_a_resume_from_another_architecture_is_refused(run_train: RunTrain, begun: Path, tmp_path: Path) -> None:
    import dataclasses

    other = save_checkpoint(tmp_path / "other.pth", seeded_sam(dataclasses.replace(SMALL, encoder_depth=2)))
    result = run_train("--resume", begun, "--checkpoint", other, bare=True)
    assert_one_line(result, "of another architecture than", str(other))


def test_a_resume_with_another_encoder_is_refused(run_train: RunTrain, begun: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other.pth", seeded_sam(SMALL, seed=5))
    result = run_train("--resume", begun, "--checkpoint", other, bare=True)
    assert_one_line(result, "another image encoder", str(other))


def test_a_store_of_another_encoder_is_refused(run_train: RunTrain, tmp_path: Path, stores: Path) -> None:
    other = save_checkpoint(tmp_path / "other.pth", seeded_sam(SMALL, seed=5))
    assert_one_line(run_train("--checkpoint", other), str(stores / "training"), str(other))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_in_it_is_not_overwritten(run_train: RunTrain, begun: Path) -> None:
    before = (begun / "last.pth").read_bytes()
    assert_one_line(run_train("--epochs", 1), "--resume")
    assert (begun / "last.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--embedding-dir", "nowhere"], "nowhere"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth: no such checkpoint file"),
        (["--resume", "nowhere"], "cannot resume from nowhere"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--profile", "medsam"], "was embedded with profile samri, not medsam"),
    ],
)
def test_a_users_mistake_gets_one_line(run_train: RunTrain, options: list[str], words: str) -> None:
    assert_one_line(run_train(*options), words)


def test_weights_alone_cannot_be_resumed_from(run_train: RunTrain, begun: Path) -> None:
    result = run_train("--resume", begun / "best.pth", bare=True)
    assert_one_line(result, "best.pth: holds no run to resume")


def test_a_cut_off_last_pth_is_refused_by_name(run_train: RunTrain, begun: Path) -> None:
    last = begun / "last.pth"
    last.write_bytes(last.read_bytes()[:1000])
    assert_one_line(run_train("--resume", begun, bare=True), str(last))


def test_a_config_file_stands_behind_the_command_line(run_train: RunTrain, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("epochs: 1\nlr: 5e-4\nweight_decay: 0.2\n")
    assert run_train("--config", config).exit_code == 0
    settings = json.loads((tmp_path / "run" / "args.json").read_text())["settings"]
    assert (settings["epochs"], settings["lr"], settings["weight_decay"]) == (1, 1e-3, 0.2)


def test_an_unknown_key_in_a_config_is_an_error(run_train: RunTrain, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("learning_rate: 5e-4\n")
    assert_one_line(run_train("--config", config), "mine.yaml: unknown setting 'learning_rate'")


def test_whole_cases_are_held_out_when_there_is_no_validation_store(
    run_train: RunTrain, stores: Path, tmp_path: Path
) -> None:
    result = run_train("--embedding-dir", stores / "training", "--epochs", 1, "--val-fraction", 0.25)
    assert result.exit_code == 0, result.stderr
    assert "validating on 1 of 4 cases" in result.stderr
    entry = logs(tmp_path / "run")["epochs"][1]
    assert entry["samples"] + entry["val_masks"] // 2 == 10


def test_the_stores_of_several_datasets_are_one(
    run_train: RunTrain, stores: Path, tmp_path: Path, small_sam: Sam
) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "A").symlink_to(stores)
    write_store(tmp_path / "all" / "B" / "training", small_sam, drawn_slices(2, seed=4))
    assert run_train("--embedding-dir", tmp_path / "all", "--epochs", 1).exit_code == 0
    entry = logs(tmp_path / "run")["epochs"][1]
    assert (entry["samples"], entry["val_masks"]) == (12, 6)


def test_a_published_cache_is_trained_on_as_it_is(run_train: RunTrain, stores: Path, tmp_path: Path) -> None:
    store = EmbeddingStore.open(stores / "training")
    (tmp_path / "cache").mkdir()
    for each in store:
        content = {"img": np.float32(each.features)[None], "mask": each.mask[None], "ori_size": np.array(each.shape)}
        np.savez_compressed(tmp_path / "cache" / f"{each.name}.npz", **content)
    result = run_train("--embedding-dir", tmp_path / "cache", "--epochs", 1)
    assert result.exit_code == 0, result.stderr
    run = logs(tmp_path / "run")["epochs"][1]
    assert run["samples"] + run["val_masks"] // 2 == 10


def test_one_patient_alone_cannot_be_split(run_train: RunTrain, tmp_path: Path, small_sam: Sam) -> None:
    store = write_store(tmp_path / "one", small_sam, drawn_slices(4, cases=1))
    assert_one_line(run_train("--embedding-dir", store), "holds one case (case0)")
    result = run_train("--embedding-dir", store, "--val-every", 0, "--epochs", 1)
    assert result.exit_code == 0, result.stderr
    assert "val_dice" not in logs(tmp_path / "run")["epochs"][0]


def test_a_damaged_shard_stops_the_run_by_name_and_keeps_what_was_done(
    run_train: RunTrain, stores: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(stores, tmp_path / "stores")
    (shard,) = (copy / "training").glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[200_000:200_400] = bytes(400)
    shard.write_bytes(content)
    assert_one_line(run_train("--embedding-dir", copy), shard.name)
    assert (tmp_path / "run" / "last.pth").exists()  # Of the validation before the first epoch.


def test_slices_whose_labels_all_vanish_are_named_as_the_reason(
    run_train: RunTrain, tmp_path: Path, small_sam: Sam
) -> None:
    slices = drawn_slices(4)
    for each in slices:
        each.mask[:] = 0
        each.mask[0, 0] = 1
        each.mask.resize((500, 500), refcheck=False)
    store = write_store(tmp_path / "thin", small_sam, slices)
    result = run_train("--embedding-dir", store, "--val-every", 0)
    assert_one_line(result, str(store), "--targets nearest-exact")


def test_a_slice_with_a_label_that_vanishes_is_named(run_train: RunTrain, tmp_path: Path, small_sam: Sam) -> None:
    slices = drawn_slices(6)
    for at in (2, 4):
        slices[at].mask[:] = 0
        slices[at].mask[0, 0] = 1
        slices[at].mask.resize((500, 500), refcheck=False)
    store = write_store(tmp_path / "thin", small_sam, slices)
    result = run_train("--embedding-dir", store, "--val-every", 0, "--epochs", 1)
    assert result.exit_code == 0, result.stderr
    name = EmbeddingStore.open(store)[2].name
    (entry,) = logs(tmp_path / "run")["epochs"]
    assert (entry["vanished"], entry["first_thin"]) == (2, name)
    assert f"vanished 2, a label too thin for the decoder first in {name}\n" in result.stderr


def test_a_full_disk_is_one_line_and_leaves_the_last_state(
    run_train: RunTrain, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (begun / "last.pth").read_bytes()
    monkeypatch.setattr(torch, "save", _save_to_a_full_disk)
    assert_one_line(run_train("--resume", begun, "--epochs", 2, bare=True), "No space left on device")
    assert (begun / "last.pth").read_bytes() == before
    assert not [file for file in begun.iterdir() if file.name.startswith(".")]


def _save_to_a_full_disk(content: object, file: Any, save: Callable[..., None] = torch.save) -> None:
    """The kernel's own full disk, behind the file that was opened."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        save(content, full)


@pytest.mark.parametrize("room", [100, 300, 900, 1500])
def test_a_disk_that_fills_within_a_file_is_one_line_too(
    run_train: RunTrain, begun: Path, tmp_path: Path, room: int
) -> None:
    """The kernel itself refuses what is beyond so many KB of a file, in the middle of torch's own format."""
    before = {file.name: file.read_bytes() for file in begun.iterdir() if file.suffix == ".pth"}
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room * 1024, unlimited[1]))
    try:
        result = run_train("--resume", begun, "--epochs", 2, bare=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert_one_line(result, "cannot write", "File too large")
    assert {name: (begun / name).read_bytes() for name in before} == before
    assert not [file for file in begun.iterdir() if file.name.startswith(".")]


def test_tensorboard_is_asked_for_by_name_when_it_is_missing(run_train: RunTrain) -> None:
    if importlib.util.find_spec("tensorboard"):
        pytest.skip("TensorBoard is installed")
    assert_one_line(run_train("--tensorboard"), "pip install tensorboard")


def test_scores_mixed_precision_and_the_moving_average_work_together(run_train: RunTrain, tmp_path: Path) -> None:
    result = run_train(
        "--train-scores", "--epochs", 1, "--amp", "--ema", 0.9, "--targets", "nearest-exact", "--val-every", 0
    )
    assert result.exit_code == 0, result.stderr
    state, before = torch.load(tmp_path / "run" / "best.pth", weights_only=True), seeded_sam(SMALL).state_dict()
    for part in ("iou_prediction_head.layers.0.weight", "output_hypernetworks_mlps.0.layers.0.weight"):
        assert not torch.equal(state[f"mask_decoder.{part}"], before[f"mask_decoder.{part}"])


@pytest.mark.parametrize(("start", "best"), [(0.9, 0), (0.7, 0), (0.6, 3)])
def test_the_best_epoch_is_that_of_the_highest_dice_and_the_start_is_one(start: float, best: int) -> None:
    history = [
        {"epoch": 0, "val_dice": start},
        {"epoch": 1, "val_dice": 0.5, "train_loss": 3.0},
        {"epoch": 2, "train_loss": 1.0},
        {"epoch": 3, "val_dice": 0.7, "train_loss": 2.0},
    ]
    found = best_entry(history)
    assert found is not None and found["epoch"] == best


def test_validation_dice_is_that_of_the_predictor(stores: Path, checkpoint: Path, tmp_path: Path, bundle: Path) -> None:
    from samri_runtime import Predictor

    settings = Settings(
        embedding_dir=stores,
        checkpoint=checkpoint,
        save_dir=tmp_path / "run",
        epochs=1,
        device="cpu",
        lr=1e-9,
        jitter=False,
    )
    said: list[str] = []
    outcome = train(settings, say=said.append)
    predictor = Predictor(bundle, provider="cpu")
    dice = []
    for drawn in drawn_slices(3, seed=9):
        embedding = predictor.encode(drawn.image)
        for label in (1, 2):
            truth = drawn.mask == label
            rows, columns = np.nonzero(truth)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            mask = predictor.predict(embedding, boxes=[box]).masks[0]
            dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert outcome.start_dice == pytest.approx(np.mean(dice), abs=2e-3)  # The store is float16.


@pytest.mark.parametrize(("options", "amp"), [(("--amp", "--no-amp"), "off"), (("--no-amp", "--amp"), "bf16")])
def test_the_last_of_amp_and_no_amp_counts(
    run_train: RunTrain, tmp_path: Path, options: tuple[str, ...], amp: str
) -> None:
    result = run_train("--epochs", 1, "--val-every", 0, *options)
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "run" / "args.json").read_text())["settings"]["amp"] == amp


def test_the_library_raises_what_the_command_prints(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--save-dir"):
        train(Settings(), say=lambda line: None)


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("samri-train: error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in last
