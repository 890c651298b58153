from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from samri.errors import InputError
from samri_training.train import Settings, main
from samri_training.train._settings import CURVE, SHIPPED, described, read_config
from samri_training.train._step import learning_rate

DOCS = Path(__file__).parents[2] / "docs"


def test_names_may_have_dashes_or_underscores() -> None:
    assert Settings.of({"batch-size": 3}, "x").batch_size == Settings.of({"batch_size": 3}, "x").batch_size == 3


def test_settings_come_back_from_json_as_they_were() -> None:
    settings = Settings.of({"embedding_dir": "/a/b", "amp": "fp16", "lr": 3e-5, "train_scores": True}, "x")
    assert Settings.of(settings.to_json(), "json") == settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batchsize": 4}, "unknown setting 'batchsize'; did you mean batch_size?"),
        ({"zzz": 4}, "unknown setting 'zzz'"),
        ({"epochs": 2.5}, "epochs is a whole number, not 2.5"),
        ({"epochs": True}, "epochs is a whole number, not True"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"lr": 0}, "lr must be above 0"),
        ({"lr": "fast"}, "lr is a number, not 'fast'"),
        ({"lr": float("nan")}, "lr is a number"),
        ({"prompts": "boxes"}, "prompts is one of box, point, mixed, alternate, not 'boxes'"),
        ({"jitter": "yes"}, "jitter is true or false, not 'yes'"),
        ({"val_fraction": 1.0}, "below 1"),
        ({"ema": 1.0}, "below 1"),
        ({"targets": "coverage"}, "coverage needs loss balanced"),
        ({"checkpoint": 3}, "checkpoint is a path, not 3"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_source_in_one_line(values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        Settings.of(values, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yamls_own_traps_are_read_as_meant(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("lr: 1e-4\namp: off\nval_embedding_dir:\n")  # YAML 1.1: a string, false, null.
    settings = Settings.of(read_config(config), str(config))
    assert settings.lr == 1e-4
    assert settings.amp == "off"
    assert settings.val_embedding_dir is None


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b\n", "just words"])
def test_a_config_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml"):
        read_config(config)


def test_a_missing_config_names_those_that_are_shipped() -> None:
    with pytest.raises(InputError, match="one_dataset, published, quick"):
        read_config(Path("nosuch.yaml"))


@pytest.mark.parametrize("config", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_found_by_its_name(config: Path) -> None:
    assert Settings.of(read_config(Path(config.stem)), config.name) != Settings()


@pytest.mark.parametrize("page", ["training", "troubleshooting"])
def test_every_option_that_the_docs_name_exists(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    ours = {option for parameter in main.params for option in (*parameter.opts, *parameter.secondary_opts)}
    others = {
        "--nproc_per_node",
        "--nodes",
        "--rdzv_endpoint",
        "--shm-size",
        "--ipc",
        "--mem",
        "--output",
        "--showtopo",
    }
    others |= {"--whole-vit-b", "--folder", "--multimask", "--data-dir", "--prompt"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= ours | others


def test_what_a_resumed_run_compares_are_settings() -> None:
    assert set(CURVE) <= set(described())


def test_the_rate_rises_in_the_warm_up_and_falls_along_a_cosine() -> None:
    settings = Settings(lr=1.0, min_lr=0.1, scheduler="cosine", warmup_steps=4)
    rates = [learning_rate(settings, step, 24) for step in range(24)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 19 / 20)))
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_a_constant_rate_is_constant_after_the_warm_up() -> None:
    settings = Settings(lr=0.5, warmup_steps=2)
    assert [learning_rate(settings, step, 5) for step in range(5)] == [0.25, 0.5, 0.5, 0.5, 0.5]
