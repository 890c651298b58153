"""All eight commands, by walking their options: types, help, verbosity, what reaches the screen."""

from __future__ import annotations

import importlib
import re
import threading
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from samri_runtime.cli import Command, GivenPath, OutputFolder, ProgressBar, Stages, command, emit, say, say_error
from samri_runtime.cli import _progress as progress_module

SCRIPTS = re.findall(
    r'^(samri-\w+) = "([\w.]+):(\w+)"$', (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"), re.MULTILINE
)
COMMANDS: dict[str, Command] = {
    name: getattr(importlib.import_module(module), function) for name, module, function in SCRIPTS
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


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_says_what_it_does_and_its_default(option: click.Option) -> None:
    if option.hidden:
        return
    assert option.help is not None
    text, _, default = option.help.partition("  [default: ")
    assert re.fullmatch(r"[A-Z].* .*\.", text), text
    assert not text.startswith("Of ")
    assert default == "" or default.endswith("]")
    if not option.is_flag and not option.required and isinstance(option.default, int | float | str):
        assert option.show_default or default
    assert (option.metavar or "TEXT").isupper() or option.metavar in ("T|all", "N|all")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_its_exit_codes(name: str) -> None:
    result = CliRunner().invoke(COMMANDS[name], ["--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: {name} [OPTIONS]\n")
    assert "Exit codes: 0 done, 1 a failure" in result.output


FORMER = [
    ("samri-run", "--checkpoint", "--model"),
    ("samri-run", "--cache-precision", "--cache-dtype"),
    ("samri-embed", "--shard", "--part"),
    ("samri-embed", "--encoder-precision", "--precision"),
    ("samri-prepare", "--split", "--ratios"),
    ("samri-prepare", "--splits", "--split-files"),
    ("samri-evaluate", "--save-dir", "--output"),
    ("samri-train", "--no-amp", "--amp"),
]


@pytest.mark.parametrize(("name", "former", "today"), FORMER)
def test_former_spellings_work_and_are_hidden(name: str, former: str, today: str) -> None:
    found = COMMANDS[name]
    context = click.Context(found, info_name=name)
    spellings = set(found.make_parser(context)._long_opt)
    assert {former, today} <= spellings
    shown = found.get_help(context)
    assert re.search(rf"{today}\b", shown)
    assert not re.search(rf"{former}[ ,]", shown)


def test_numbers_with_commas_work_in_a_former_spelling_too(tmp_path: Path) -> None:
    ratios = ["-i", str(tmp_path), "-o", str(tmp_path / "o"), "--split", "0,0,0"]
    result = CliRunner().invoke(COMMANDS["samri-prepare"], ratios)
    assert result.stderr == "samri-prepare: error: --ratios needs a number above 0.\n"


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
        with ProgressBar(3, "slice") as progress:
            progress.advance()
            time.sleep(0.06)
            progress.advance(2)

    said = CliRunner().invoke(count, []).stderr
    assert re.search(r"^samri-count: \d of 3 slices, [\d.]+ per second, \d+ s left$", said, re.MULTILINE)
    assert CliRunner().invoke(count, ["-q"]).stderr == ""
