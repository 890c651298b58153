"""What all command lines share: values given once, numbers with commas, choices in any case, plain errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from samri_runtime.cli import command
from samri_runtime.cli._arguments import plain


@command("samri-any")
@click.option("-c", "--model", "--checkpoint", "model")
@click.option("--slice", "index", type=int)
@click.option("--box", "boxes", multiple=True, nargs=4, type=float)
@click.option("--negative-point", "points", multiple=True, nargs=2, type=float)
@click.option("--pattern", nargs=2)
@click.option("--plane", type=click.Choice(("axial", "coronal")))
@click.option("--png/--no-png")
@click.option("--json", "as_json", is_flag=True)
def any_command(**given: object) -> None:
    click.echo(repr({name: value for name, value in given.items() if value not in (None, (), False)}))


def run(*options: str) -> Result:
    return CliRunner().invoke(any_command, options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--model", "a", "--model", "b"], "--model"),
        (["-c", "a", "--checkpoint=b"], "--model"),
        (["--slice", "1", "--slice", "2"], "--slice"),
        (["--plane", "axial", "--plane", "axial"], "--plane"),
        (["--png", "--no-png"], "--png"),
    ],
)
def test_an_option_of_one_value_that_is_given_twice_is_wrong_usage(options: list[str], name: str) -> None:
    result = run(*options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"samri-any: error: {name} is given 2 times: give it once.\n"


def test_flags_and_repeatable_options_may_be_repeated() -> None:
    assert run("--json", "--json", "--box", "1", "2", "3", "4", "--box", "1", "2", "3", "4").exit_code == 0
    assert run("--slice", "1", "--slice", "2", "--help").exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--box", "40", "-6.5", "110", "1e2"],
        ["--box", "40,-6.5,110,1e2"],
        ["--box=40,-6.5,110,1e2"],
        ["--box", "40, -6.5, 110, 1e2"],
        ["--box", "40,", "-6.5,", "110,", "1e2"],
        ["--box", "40,-6.5", "110,1e2"],
    ],
)
def test_the_numbers_of_a_box_may_have_commas_between_them(options: list[str]) -> None:
    result = run(*options, "--slice", "3")
    assert result.stdout == "{'boxes': ((40.0, -6.5, 110.0, 100.0),), 'index': 3}\n", result.stderr
    both = run(*options, "--box", "1,2,3,4", "--negative_point", "3,4", "--", *[])
    assert "(1.0, 2.0, 3.0, 4.0)), 'points': ((3.0, 4.0),)" in both.stdout, both.stderr


@pytest.mark.parametrize("options", [["--box", "40,60,110"], ["--box", "1,2,3,4,5"], ["--box", "40,60", "--json"]])
def test_another_number_of_numbers_is_wrong_usage_that_shows_the_right_one(options: list[str]) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert "--box takes 4 numbers, as in --box 40 60 110 120" in result.stderr


def test_commas_in_text_stay() -> None:
    assert run("--pattern", "a,b", "c", "--model", "1,2").stdout == "{'pattern': ('a,b', 'c'), 'model': '1,2'}\n"


@pytest.mark.parametrize("plane", ["Axial", "AXIAL", "axial"])
def test_a_choice_is_understood_in_any_case(plane: str) -> None:
    assert run("--plane", plane).stdout == "{'plane': 'axial'}\n"


@pytest.mark.parametrize("option", ["--plane", "--slice", "--nothing-like-it-"])
def test_a_value_of_thousands_of_characters_is_not_repeated_whole(option: str) -> None:
    result = run(option, "x" * 5000)
    assert result.exit_code == 2
    assert len(result.stderr) < 700
    assert option in result.stderr


def test_a_message_can_not_steer_the_terminal_and_keeps_its_end() -> None:
    assert plain("red \x1b[31m\nnext\u202eline \x9b\x00") == r"red \x1b[31m next\u202eline \x9b\x00"
    assert plain("Größe, 画像 stay, \udcff is named") == r"Größe, 画像 stay, \udcff is named"
    long = plain("cannot read " + "y" * 5000 + ": check the path")
    assert long.startswith("cannot read yyy")
    assert long.endswith("y: check the path")
    assert plain("a" * 600) == "a" * 600


def test_every_command_is_one_of_these() -> None:
    text = "".join(path.read_text("utf-8") for path in Path(__file__).parents[2].glob("*/samri_*/**/*command.py"))
    assert "@click.command" not in text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EMFILE, errno.ENAMETOOLONG])
def test_what_the_machine_refuses_is_one_line_with_a_way_out(tmp_path: Path, number: int) -> None:
    @command("samri-full")
    def full() -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))

    result = CliRunner().invoke(full)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"samri-full: error: {tmp_path / 'file'}: {os.strerror(number)}: ")
    assert len(result.stderr.splitlines()) == 1


def test_any_other_failure_of_the_system_is_a_fault_of_the_program() -> None:
    @command("samri-odd")
    def odd() -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    assert isinstance(CliRunner().invoke(odd).exception, OSError)
