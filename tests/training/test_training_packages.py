"""A package of the `train` extra that is missing: one line, before any work."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())
"""
TRAIN = "from samri_training.train import main; sys.argv[:2] = ['samri-train']; main()"
EVALUATE = "from samri_training.evaluate import main; sys.argv[:2] = ['samri-evaluate']; main()"
TRAIN_OPTIONS = ["--embedding-dir", "no-store", "--checkpoint", "none.pth", "--save-dir", "none"]
EVALUATE_OPTIONS = ["--embedding-dir", "no-store", "--model", "none.pth", "--output", "none"]


def run_without(packages: str, program: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED + program, packages, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("program", "options", "package"),
    [
        (TRAIN, TRAIN_OPTIONS, "torch"),
        (TRAIN, TRAIN_OPTIONS, "matplotlib"),
        (EVALUATE, EVALUATE_OPTIONS, "torch"),
        (EVALUATE, EVALUATE_OPTIONS, "matplotlib"),
    ],
)
def test_a_missing_package_is_one_line_before_any_work(program: str, options: list[str], package: str) -> None:
    done = run_without(package, program, *options)
    assert done.returncode == 1
    assert done.stdout == ""
    *stages, line = done.stderr.strip().splitlines()
    assert all(": loading " in stage for stage in stages)  # Said where that takes over two seconds.
    assert f" needs {package} (" in line
    assert line.endswith("pip install 'samri[train]'")


@pytest.mark.slow
@pytest.mark.parametrize("package", ["monai", "yaml"])
def test_every_package_of_a_run_is_asked_for(package: str) -> None:
    done = run_without(package, TRAIN, *TRAIN_OPTIONS)
    assert done.returncode == 1
    assert f" needs {package} (" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_library_says_it_too_and_the_help_needs_none_of_them() -> None:
    program = "\ntry:\n    from samri_training.train import train\nexcept Exception as error:\n    print(error)"
    assert "pip install 'samri[train]'" in run_without("torch", program).stdout
    assert "--save-dir" in run_without("torch,monai,yaml,segment_anything,matplotlib", TRAIN, "--help").stdout
