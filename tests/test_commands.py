"""All eight commands, by walking their options: types, help, verbosity, what reaches the screen."""

from __future__ import annotations

import importlib
import re
import threading
import time
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from samri_runtime.cli import Command, GivenPath, OutputFolder, Progress, Stages, command, emit, say, say_error
from samri_runtime.cli import _progress as progress_module

SCRIPTS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
COMMANDS: dict[str, Command] = {
    name: getattr(importlib.import_module(place.partition(":")[0]), place.partition(":")[2])
    for name, place in SCRIPTS.items()
}
OPTIONS = [
    pytest.param(option, id=f"{name} {option.opts[-1]}")
    for name, found in COMMANDS.items()
    for option in found.params
    if isinstance(option, click.Option)
]
OUTPUTS = [
    (name, option)
    for name, found in COMMANDS.items()
    for option in found.params
    if {"--output", "--save-dir"} & set(option.opts)
]


def test_these_are_all() -> None:
    assert len(COMMANDS) == 8
    assert all(type(found) is Command for found in COMMANDS.values())


@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_takes_an_empty_path_for_the_current_folder(option: click.Option) -> None:
    if isinstance(option.type, click.Path):
        assert isinstance(option.type, GivenPath)
        with pytest.raises(click.BadParameter, match="empty"):
            option.type.convert("", option, None)


@pytest.mark.parametrize("file", ["x.nii.gz", "x.onnx", "x.json", "results.csv"])
@pytest.mark.parametrize(("name", "option"), OUTPUTS, ids=[name for name, _ in OUTPUTS])
def test_a_folder_to_make_is_not_called_like_a_file(name: str, option: click.Option, file: str, tmp_path: Path) -> None:
    assert isinstance(option.type, OutputFolder)
    result = CliRunner().invoke(COMMANDS[name], [option.opts[-1], str(tmp_path / file)])
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2
    assert line.startswith(f"{name}: error: ")
    assert "looks like a file: give a folder" in line
    assert list(tmp_path.iterdir()) == []


@command("samri-any")
@click.option("--name", default="a")
@click.option("--fail", is_flag=True)
def any_command(name: str, fail: bool) -> None:
    say(f"note: {name}")
    emit(f"result {name}")
    if fail:
        say_error("error: it failed")


def test_quiet_leaves_results_and_errors() -> None:
    loud = CliRunner().invoke(any_command, ["--fail"])
    assert (loud.stdout, loud.stderr) == ("result a\n", "samri-any: note: a\nsamri-any: error: it failed\n")
    quiet = CliRunner().invoke(any_command, ["--fail", "--quiet"])
    assert (quiet.stdout, quiet.stderr) == ("result a\n", "samri-any: error: it failed\n")
    both = CliRunner().invoke(any_command, ["-q", "-v"])
    assert (both.exit_code, both.stdout) == (2, "")
    assert both.stderr == "samri-any: error: give --verbose or --quiet, not both.\n"


def test_control_characters_of_foreign_names_are_printed_as_escapes() -> None:
    result = CliRunner().invoke(any_command, ["--name", "\x1b[2Jred\x9b\u202e Größe 画像"])
    assert result.stdout == "result \\x1b[2Jred\\x9b\\u202e Größe 画像\n"
    assert result.stderr == "samri-any: note: \\x1b[2Jred\\x9b\\u202e Größe 画像\n"


def test_the_spaces_of_a_table_stay_and_line_ends_do_not() -> None:
    assert CliRunner().invoke(any_command, ["--name", "a    b\r\n  c"]).stderr == "samri-any: note: a    b c\n"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_SILENT_S", 0.05)
    monkeypatch.setattr(progress_module, "_BETWEEN_LINES_S", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_stage_that_lasts_is_named_and_a_short_one_is_not() -> None:
    @command("samri-slow")
    def slow() -> None:
        with Stages() as stages:
            stages.begin("short")
            stages.begin("long")
            time.sleep(0.5)
            stages.end()
            time.sleep(0.2)

    result = CliRunner().invoke(slow, [])
    lines = result.stderr.splitlines()
    assert lines[:2] == ["samri-slow: long", "samri-slow: long: 0 s so far"]
    assert set(lines) == set(lines[:2])
    assert CliRunner().invoke(slow, ["--quiet"]).stderr == ""
    assert re.search(r"^samri-slow: long: 0\.\d\d s$", CliRunner().invoke(slow, ["--verbose"]).stderr, re.MULTILINE)
    assert threading.active_count() == 1


@pytest.mark.usefixtures("impatient")
def test_what_is_counted_is_told_in_lines_where_there_is_no_terminal() -> None:
    @command("samri-count")
    def count() -> None:
        with Progress(3, "slice") as progress:
            progress.advance()
            time.sleep(0.06)
            progress.advance(2)

    said = CliRunner().invoke(count, []).stderr
    assert re.search(r"^samri-count: \d of 3 slices, [\d.]+ per second, \d+ s left$", said, re.MULTILINE)
    assert CliRunner().invoke(count, ["-q"]).stderr == ""
