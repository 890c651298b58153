"""Who may import whom: the packages stay apart, so that a host of the runtime needs no PyTorch."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = {"torch", "segment_anything", "safetensors"}

# `samri.load_model` and `samri.segment` are imported from above when first used: the one arrow that points up.
FRONT_DOOR = "samri/__init__.py"

# First match wins: part of a source tree, what of others it may import, and what of ours.
RULES: list[tuple[str, set[str], set[str]]] = [
    ("samri/model/", {"numpy", *TORCH}, {"samri"}),
    ("samri/io/optional.py", {"nibabel", "cv2"}, {"samri"}),
    (FRONT_DOOR, set(), {"samri", "samri_runtime"}),
    ("samri/", {"numpy"}, {"samri"}),
    ("runtime/samri_runtime/run/", {"numpy", "onnxruntime", "click"}, {"samri", "samri_runtime"}),
    ("runtime/samri_runtime/doctor/", {"numpy", "onnxruntime", "click"}, {"samri", "samri_runtime"}),
    ("runtime/samri_runtime/bench/_command.py", {"click"}, {"samri", "samri_runtime"}),
    ("runtime/samri_runtime/bench/_report.py", {"numpy", "matplotlib"}, {"samri", "samri_runtime"}),
    ("runtime/samri_runtime/_pyinstaller/", {"PyInstaller"}, set()),
    ("runtime/samri_runtime/cli/", {"click"}, {"samri", "samri_runtime"}),
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
        {"numpy", "click", "cv2", "matplotlib", "monai", "onnxruntime", "scipy", "yaml", *TORCH},
        {"samri", "samri.model", "samri_runtime", "samri_training"},
    ),
    (
        "recipes/",
        {"numpy", "click", "cv2", "matplotlib", "nibabel", "PIL", "scipy", *TORCH},
        {"samri", "samri.model", "samri_runtime", "samri_export", "samri_training", "samri_tiny"},
    ),
]
# `samri.io` asks for these inside the functions that need them, so that importing it costs nothing.
BY_NAME = {"samri/io/": {"nibabel", "cv2"}}
OURS = {"samri", "samri_runtime", "samri_export", "samri_training", "samri_tiny"}
# What the demo's workshop takes out of the training, which has no public name for it.
WORKSHOP = {
    ("recipes/samri_tiny/_loss.py", "samri_training.train._loss.balanced_losses"),
    ("recipes/samri_tiny/_loss.py", "samri_training.train._loss.true_iou"),
    ("recipes/samri_tiny/pretraining.py", "samri_training.train._step.MovingAverage"),
}
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("samri", "runtime", "export", "training", "recipes")
    for path in (ROOT / folder).rglob("*.py")
)


@functools.cache
def imported(source: str) -> list[str]:
    """Every module that a file imports, at the top or within functions, as dotted names."""
    return list(_imported(source))


def _imported(source: str) -> Iterator[str]:
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


def test_a_private_module_is_imported_by_its_own_package_only() -> None:
    crossed = set()
    for source in SOURCES:
        for name in imported(source):
            package, *parts = name.split(".")
            private = any(part.startswith("_") and not part.startswith("__") for part in parts)
            if private and package in OURS - {module_of(source).partition(".")[0]}:
                crossed.add((source, name))
    assert crossed - WORKSHOP == set()


def test_no_module_imports_itself_through_others() -> None:
    """At the top, within functions or for annotations: what needs each other is one idea."""
    sources = [source for source in SOURCES if source != FRONT_DOOR]
    assert circles_among(sources) == []


def module_of(source: str) -> str:
    """The dotted name of a file of ours."""
    parts = list(Path(source).with_suffix("").parts)
    if parts[0] not in OURS:
        del parts[0]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles_among(sources: list[str]) -> list[set[str]]:
    """Every set of modules of which each imports, directly or through others, all the rest."""
    modules = {module_of(source): source for source in sources}
    reached = {
        module: {target for name in imported(source) for target in _targets(name, modules)} - {module}
        for module, source in modules.items()
    }
    # The transitive closure, grown until nothing new is reached.
    grown = True
    while grown:
        grown = False
        for module, targets in reached.items():
            further = set().union(*(reached[target] for target in targets)) - targets
            if further:
                reached[module] = targets | further
                grown = True
    circles = [{other for other in reached[module] if module in reached[other]} for module in reached]
    return [set(names) for names in {frozenset(circle) for circle in circles if circle}]


def _targets(name: str, modules: dict[str, str]) -> set[str]:
    """The module that `import name` or `from ... import ...` runs: the longest of ours that the name begins with."""
    parts = name.split(".")
    longest = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in modules), None)
    return set() if longest is None else {longest}


def test_there_is_something_to_check() -> None:
    assert {source.partition("/")[0] for source in SOURCES} == {"samri", "runtime", "export", "training", "recipes"}


def test_the_front_door_is_light_and_opens_when_used() -> None:
    code = (
        "import sys; import samri\n"
        "assert not {'numpy', 'samri_runtime', 'samri.io'} & set(sys.modules)\n"
        "assert {'load_model', 'read_scan', 'segment'} <= set(dir(samri)) & set(samri.__all__)\n"
        "assert callable(samri.read_scan) and callable(samri.segment) and callable(samri.load_model)\n"
        "assert not hasattr(samri, 'no_such_name'); assert not {'torch', 'onnx', 'nibabel', 'click'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
