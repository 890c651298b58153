"""Ctrl-C and the signals of job systems while C code computes: the process ends with 130 within seconds."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from samri_runtime._interruptible import Background

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs libc and POSIX signals")

PROGRAM = """
import ctypes, os, signal, sys, time
from samri_runtime.cli import command
from samri_runtime._interruptible import Background

def compute():
    # One call of C for 30 s that signals don't end, and in which no handler of Python's runs: as an encoder's run.
    libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
    libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(libc.sleep, ctypes.c_void_p), ctypes.c_void_p(30))
    print("computing", flush=True)
    libc.pthread_join(thread, None)

@command("samri-slow")
def main():
    if MODE == "main":
        compute()
    elif MODE == "background":
        with Background(compute) as work:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # As while a session is made.
            work.result()
    elif MODE == "clean":
        try:
            print("computing", flush=True)
            time.sleep(30)
        finally:
            time.sleep(3)
            print("cleaned", flush=True)
    elif MODE == "own handler":
        signal.signal(signal.SIGTERM, lambda *_: None)
        print("computing", flush=True)
        time.sleep(4)
        print("went on", flush=True)
    elif MODE == "fork":
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"x")  # A signal that comes while it is forked is lost.
            time.sleep(30)
        os.read(reading, 1)
        print("computing", flush=True)
        os.kill(child, signal.SIGTERM)
        time.sleep(4)
        os.waitpid(child, 0)
        print("went on", flush=True)

MODE = sys.argv.pop()
main()
"""


def stopped(mode: str, number: signal.Signals | None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program, to which a signal is sent when it computes."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "computing\n"
        time.sleep(0.2)
        if number is not None:
            process.send_signal(number)
        out, error = process.communicate(timeout=15)
        return process.returncode, out, error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("mode", ["main", "background"])
def test_a_command_ends_although_c_code_computes_on(mode: str, number: signal.Signals) -> None:
    assert stopped(mode, number) == (130, "", "samri-slow: stopped\n")


def test_what_cleans_up_after_a_stop_is_given_its_time() -> None:
    assert stopped("clean", signal.SIGINT) == (130, "cleaned\n", "samri-slow: stopped\n")


@pytest.mark.parametrize(("mode", "number"), [("own handler", signal.SIGTERM), ("fork", None)])
def test_a_signal_that_others_handle_stops_nothing(mode: str, number: signal.Signals | None) -> None:
    code, out, _ = stopped(mode, number)
    assert (code, out.splitlines()[-1]) == (0, "went on")


def test_what_work_in_the_background_raises_is_raised_where_its_result_is_asked_for() -> None:
    with Background(lambda: 1 // 0) as work, pytest.raises(ZeroDivisionError):
        work.result()
    with Background(lambda: 7) as work:
        assert work.result() == 7
