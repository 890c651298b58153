"""Who may import whom: the packages stay apart, so that a host of the runtime needs no PyTorch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = {"torch", "segment_anything", "safetensors"}

# First match wins: part of a source tree, what of others it may import, and what of ours.
RULES: list[tuple[str, set[str], set[str]]] = [
    ("samri/model/", {"numpy", *TORCH}, {"samri"}),
    ("samri/io/_optional.py", {"nibabel", "cv2"}, {"samri"}),
    ("samri/", {"numpy"}, {"samri"}),
    ("runtime/samri_runtime/run/", {"numpy", "onnxruntime", "click"}, {"samri", "samri_runtime"}),
    ("runtime/samri_runtime/doctor/", {"numpy", "onnxruntime", "click"}, {"samri", "samri_runtime"}),
    ("runtime/samri_runtime/bench/_command.py", {"click"}, {"samri", "samri_runtime"}),
    ("runtime/samri_runtime/bench/_plot.py", {"numpy", "matplotlib"}, {"samri", "samri_runtime"}),
    ("runtime/samri_runtime/_pyinstaller/", {"PyInstaller"}, set()),
    ("runtime/samri_runtime/_arguments.py", {"click"}, {"samri", "samri_runtime"}),
    ("runtime/samri_runtime/_command.py", {"click"}, {"samri", "samri_runtime"}),
    ("runtime/", {"numpy", "onnxruntime"}, {"samri", "samri_runtime"}),
    (
        "export/samri_export/_fp16.py",  # ONNX Runtime's wheel holds the converter.
        {"numpy", "onnx", "onnxruntime"},
        {"samri_runtime"},
    ),
    (
        "export/",
        {"numpy", "click", "onnx", "onnxsim", *TORCH},
        {"samri", "samri.model", "samri_runtime", "samri_export"},
    ),
    (
        "training/",
        {"numpy", "click", "cv2", "matplotlib", "monai", "onnxruntime", "scipy", "tqdm", "yaml", *TORCH},
        {"samri", "samri.model", "samri_runtime", "samri_training"},
    ),
    (
        "recipes/",
        {"numpy", "click", "cv2", "matplotlib", "nibabel", "scipy", "tqdm", *TORCH},
        {"samri", "samri.model", "samri_runtime", "samri_export", "samri_training", "samri_tiny"},
    ),
]
# `samri.io` asks for these inside the functions that need them, so that importing it costs nothing.
BY_NAME = {"samri/io/": {"nibabel", "cv2"}}
OURS = {"samri", "samri_runtime", "samri_export", "samri_training", "samri_tiny"}
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("samri", "runtime", "export", "training", "recipes")
    for path in (ROOT / folder).rglob("*.py")
)


def imported(source: str) -> Iterator[str]:
    """Every module that a file imports, at the top or within functions, as dotted names."""
    for node in ast.walk(ast.parse((ROOT / source).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: a relative import hides what is imported"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("source", SOURCES)
def test_a_module_imports_only_what_its_package_may(source: str) -> None:
    others, ours = next((others, ours) for start, others, ours in RULES if source.startswith(start))
    for name in imported(source):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names:
            continue
        assert package in (ours if package in OURS else others), f"{source} imports {name}"
        if f"{name}.".startswith("samri.model.") and not source.startswith("samri/model/"):
            assert "samri.model" in ours, f"{source} imports {name}"


@pytest.mark.parametrize("source", [source for source in SOURCES if source.startswith(("samri/", "runtime/"))])
def test_only_the_readers_of_scans_ask_for_nibabel_and_opencv(source: str) -> None:
    asked = {
        node.args[0].value
        for node in ast.walk(ast.parse((ROOT / source).read_text("utf-8")))
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
        if getattr(node.func, "id", getattr(node.func, "attr", "")) in ("require", "import_module", "__import__")
    }
    allowed = next((names for start, names in BY_NAME.items() if source.startswith(start)), set())
    assert asked <= allowed


def test_there_is_something_to_check() -> None:
    assert {source.partition("/")[0] for source in SOURCES} == {"samri", "runtime", "export", "training", "recipes"}
