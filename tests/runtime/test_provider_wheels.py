"""Installed wheels and their conflicts, found in dist-info folders that pip would have written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from samri.errors import ProviderError
from samri_runtime.providers import _wheels
from samri_runtime.providers._wheels import Wheel, conflict_line, conflicting, replace_line, wheels_on
from samri_runtime.providers._wheels import plugin_device as choose_device
from tests.support.recorded_runtime import OPENVINO, plugin_device

RUNTIME_FILES = ("onnxruntime/__init__.py", "onnxruntime/capi/__init__.py")


def install(site: Path, name: str, version: str, files: tuple[str, ...] | None = RUNTIME_FILES) -> None:
    """Write the dist-info folder of a wheel; without `files`, one whose RECORD is lost."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if files is not None:
        (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_a_single_wheel_is_no_conflict(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.32.0")
    install(tmp_path, "numpy", "2.4.6", ("numpy/__init__.py",))
    wheels = wheels_on([str(tmp_path)])
    assert wheels == (Wheel("onnxruntime", "1.32.0", True),)
    assert conflicting(wheels) == ()
    assert conflict_line(wheels) is None


@pytest.mark.parametrize(
    ("names", "extra"),
    [
        (("onnxruntime", "onnxruntime-gpu"), "gpu"),
        (("onnxruntime", "onnxruntime-openvino"), "openvino"),
        (("onnxruntime-migraphx", "onnxruntime-rocm"), "rocm"),
        (("onnxruntime", "onnxruntime-directml"), "directml"),
        (("onnxruntime", "onnxruntime-qnn"), "cpu"),
    ],
)
def test_two_wheels_that_share_a_folder_are_found_with_the_lines_to_mend_it(
    tmp_path: Path, names: tuple[str, str], extra: str
) -> None:
    for name in names:
        install(tmp_path, name, "1.30.0")
    line = conflict_line(wheels_on([str(tmp_path)]))
    assert line == (
        f"{names[0]} 1.30.0 and {names[1]} 1.30.0 are installed over each other: "
        f"run pip uninstall -y {names[0]} {names[1]}, then pip install 'samri[{extra}]'"
    )


def test_the_first_folder_of_the_path_is_imported_and_no_wheel_elsewhere_is_in_its_way(tmp_path: Path) -> None:
    install(tmp_path / "first", "onnxruntime-gpu", "1.31.1")
    install(tmp_path / "second", "onnxruntime", "1.30.0")
    install(tmp_path / "second", "onnxruntime-extensions", "0.15.2", ("onnxruntime_extensions/__init__.py",))
    wheels = wheels_on([str(tmp_path / name) for name in ("first", "second")])
    assert [wheel.name for wheel in wheels if wheel.shadowed] == ["onnxruntime"]
    assert len(wheels) == 3
    assert conflict_line(wheels) is None


@pytest.mark.parametrize("files", [("onnxruntime_extensions/__init__.py",), None])
@pytest.mark.parametrize("name", ["onnxruntime-extensions", "onnxruntime-genai", "onnxruntime-ep-openvino"])
def test_companions_share_no_folder_and_are_no_conflict(
    tmp_path: Path, name: str, files: tuple[str, ...] | None
) -> None:
    install(tmp_path, "onnxruntime", "1.32.0")
    install(tmp_path, name, "0.15.2", files)
    wheels = wheels_on([str(tmp_path)])
    assert [wheel.name for wheel in wheels] == ["onnxruntime", name]
    assert conflicting(wheels) == ()


def test_names_are_normalised_and_a_folder_that_pip_left_half_removed_is_skipped(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime_gpu", "1.31.1", None)
    broken = tmp_path / "onnxruntime-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\n")
    assert wheels_on([str(tmp_path)]) == (Wheel("onnxruntime-gpu", "1.31.1", True),)


def test_without_any_wheel_there_is_nothing_to_uninstall() -> None:
    assert replace_line((), "gpu") == "run pip install 'samri[gpu]'"


def import_session_with(site: Path) -> str:
    """What opening a session says in a process that finds `onnxruntime` in `site` only."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "from samri_runtime.providers._wheels import load_onnxruntime\n"
        "try:\n    load_onnxruntime()\n"
        "except ImportError as error:\n    print(type(error).__name__, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout


def test_a_missing_onnxruntime_gives_the_line_that_installs_it(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('No module', name='onnxruntime')\n")
    assert import_session_with(tmp_path).startswith(
        "MissingDependencyError ONNX Runtime isn't installed: run pip install 'samri[cpu]', or pip install 'samri[gpu]'"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "its files are gone, as when one of two wheels was uninstalled"),
        ("raise ImportError('DLL load failed\\nwhile importing')", "DLL load failed while importing"),
        ("import flatbuffers_missing", "No module named 'flatbuffers_missing'"),
    ],
)
def test_a_damaged_onnxruntime_gives_the_lines_that_mend_it(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "onnxruntime.py").write_text(content)
    said = import_session_with(tmp_path)
    assert said.startswith(
        f"MissingDependencyError ONNX Runtime can't be imported ({reason}): run pip uninstall -y onnx"
    )
    assert said.count("\n") == 1


class PluginRuntime:
    """The calls by which ONNX Runtime 1.32 takes plug-ins, with the devices of one."""

    def __init__(self, *devices: object) -> None:
        self._devices = list(devices)

    def get_ep_devices(self) -> list[object]:
        return self._devices


PLUGIN = Wheel("onnxruntime-ep-openvino", "1.8.1", False)


def test_a_plugins_device_is_chosen_by_openvinos_device_type() -> None:
    cpu, gpu = plugin_device(OPENVINO, ov_device="CPU"), plugin_device(OPENVINO, ov_device="GPU")
    runtime = PluginRuntime(cpu, gpu)
    assert choose_device(runtime, "openvino", (PLUGIN,), {}) is cpu
    assert choose_device(runtime, "openvino", (PLUGIN,), {"device_type": "GPU"}) is gpu


def test_a_plugin_without_a_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wheels, "_register", lambda *_: None)
    wheels = (Wheel("onnxruntime", "1.32.0", True), PLUGIN)
    with pytest.raises(ProviderError) as caught:
        choose_device(PluginRuntime(), "openvino", wheels, {})
    assert str(caught.value) == (
        "openvino can't be used: onnxruntime-ep-openvino 1.8.1 finds no device for it in this machine; for the wheel "
        "with openvino built in, run pip uninstall -y onnxruntime onnxruntime-ep-openvino, "
        "then pip install 'samri[openvino]'"
    )


def test_without_a_plugin_there_is_no_device_and_no_error() -> None:
    assert choose_device(PluginRuntime(), "openvino", (), {}) is None
    assert choose_device(object(), "openvino", (), {}) is None
