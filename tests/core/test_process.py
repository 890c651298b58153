"""The process: cores by affinity and quota, and signals that unwind the stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samri.process import forbid_telemetry, thread_limit, usable_cores

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def cores(root: Path, groups: str = "0::/\n", **files: str) -> int:
    """Usable cores under control groups of these files, `a__b` for `a/b`."""
    for name, text in files.items():
        path = root / "cgroup" / name.replace("__", "/").replace("_max", ".max").replace("cfs_", "cpu.cfs_")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "own").write_text(groups)
    return usable_cores(root / "cgroup", root / "own")


@LINUX
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("100 100000\n", 1),
        ("3200000 100000\n", 16),
        ("max 100000\n", 16),
        ("", 16),
        ("nonsense\n", 16),
        ("-1 100000\n", 16),
        ("200000 0\n", 16),
        ("200000\n", 16),
        ("9" * 5000 + " 100000\n", 16),
        ("\N{SUPERSCRIPT TWO} 1\n", 16),
    ],
)
def test_a_quota_of_version_2_is_rounded_up(tmp_path: Path, text: str, expected: int) -> None:
    assert cores(tmp_path, cpu_max=text) == expected


@LINUX
@pytest.mark.parametrize(
    ("quota", "expected"), [("300000\n", 3), ("250000\n", 3), ("-1\n", 16), ("0\n", 16), ("x", 16)]
)
def test_a_quota_of_version_1_is_read_from_its_two_files(tmp_path: Path, quota: str, expected: int) -> None:
    assert cores(tmp_path, "4:cpu,cpuacct:/\n", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000\n") == expected


@LINUX
def test_the_smallest_quota_from_the_root_to_the_process_counts(tmp_path: Path) -> None:
    groups = "0::/user.slice/job/step\n"
    assert cores(tmp_path, groups, user__cpu_max="100000 100000") == 16  # Another's.
    (tmp_path / "cgroup" / "user.slice" / "job" / "step").mkdir(parents=True)
    (tmp_path / "cgroup" / "user.slice" / "job" / "cpu.max").write_text("400000 100000")
    assert cores(tmp_path, groups) == 4
    (tmp_path / "cgroup" / "user.slice" / "job" / "step" / "cpu.max").write_text("max 100000")
    assert cores(tmp_path, groups) == 4
    assert cores(tmp_path, groups, cpu_max="200000 100000") == 2


@LINUX
def test_a_nested_group_of_version_1_and_one_outside_the_namespace(tmp_path: Path) -> None:
    docker = "4:cpu,cpuacct:/docker/1\n1:name=systemd:/x\n0::/\n"
    files = {"cpu__docker__1__cfs_quota_us": "500000", "cpu__docker__1__cfs_period_us": "100000"}
    assert cores(tmp_path, docker, **files) == 5
    (tmp_path / "cgroup" / "secret").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "cpu.max").write_text("100000 100000")
    assert cores(tmp_path, "0::/../secret\n") == 16


@LINUX
def test_no_control_groups_at_all_leave_the_affinity(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "none either") == 16


@LINUX
def test_threads_follow_the_affinity_and_the_users_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samri.process._quotas", lambda *_: [])
    assert thread_limit() is None
    for text, expected in [
        ("3", 3),
        ("4,2", 4),
        ("64", 16),
        ("0", None),
        ("-1", None),
        ("many", None),
        ("9" * 99, None),
    ]:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert thread_limit() == expected
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("samri.process._quotas", lambda *_: [5, 3])
    assert thread_limit() == 3


def test_a_users_own_word_on_telemetry_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("ORT_TELEMETRY_DISABLED", raising=False)
    forbid_telemetry()
    assert (os.environ["ORT_DISABLE_TELEMETRY"], os.environ["ORT_TELEMETRY_DISABLED"]) == ("0", "1")


WAITS = """
import signal, sys, time
from samri.process import unwind_on_signals
restore = unwind_on_signals()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)  # A second signal within a second interrupts no cleaning.
    print("cleaned", flush=True)
finally:
    restore()
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""


@POSIX
@pytest.mark.parametrize("first", ["SIGTERM", "SIGHUP"])
def test_a_stop_unwinds_and_a_second_one_at_once_does_not_interrupt_the_cleaning(first: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, first))
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "cleaned\n"
    assert process.returncode == 0


@POSIX
def test_nohup_is_respected() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from samri.process import unwind_on_signals; "
    code += "unwind_on_signals(); signal.raise_signal(signal.SIGHUP); print('still here')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "still here\n"
