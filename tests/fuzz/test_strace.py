"""What the system saw: no command opens a connection, or writes outside output, cache, settings and temporary files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.scans import OBLIQUE, brain_like, save_nifti

ROOT = Path(__file__).parents[2]
PACKAGES = [str(ROOT / folder) for folder in (".", "runtime", "export", "training")]
MODULES = {
    "samri-prepare": "samri_training.prepare",
    "samri-embed": "samri_training.embed",
    "samri-train": "samri_training.train",
    "samri-evaluate": "samri_training.evaluate",
    "samri-export": "samri_export.command",
    "samri-run": "samri_runtime.run",
    "samri-doctor": "samri_runtime.doctor",
    "samri-bench": "samri_runtime.bench._command",
}
CALLS = "network,open,openat,creat,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat"
# What carries something out of the process, or lets something in. A socket alone does neither: at its import, urllib3
# binds one to ::1 to learn whether the machine has IPv6.
SPEAKS = ("connect", "listen", "accept", "send", "recv")
# matplotlib keeps a list of the machine's fonts in the user's cache folder.
IN_HOME = (".cache/matplotlib", ".config/matplotlib")
# A file there belongs to no disk; OpenMP registers itself in shared memory, and takes that back at its end.
ALLOWED_FILES = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/self/")
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|^creat|^rename|^mkdir|^unlink")
QUOTED = re.compile(r'(?:AT_FDCWD|\d+)?(?:<([^>]*)>)?(?:, )?"((?:[^"\\]|\\.)*)"')

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(
        shutil.which("strace") is None, reason="strace isn't installed (Debian: apt-get install strace)"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Where all commands run, one on the results of the other."""
    folder = tmp_path_factory.mktemp("strace")
    rng = np.random.default_rng(0)
    for patient in range(10):
        labels = np.zeros((40, 36, 2), np.uint8)
        labels[8:30, 9:27] = 1
        image = rng.integers(0, 300, labels.shape, dtype=np.int16) + 500 * labels.astype(np.int16)
        (folder / "volumes").mkdir(exist_ok=True)
        save_nifti(folder / "volumes" / f"p{patient}_img_.nii.gz", image, sform=OBLIQUE)
        save_nifti(folder / "volumes" / f"p{patient}_seg_.nii.gz", labels, sform=OBLIQUE)
    save_nifti(folder / "scan.nii.gz", brain_like((24, 20, 5)), sform=OBLIQUE)
    shutil.copy(checkpoint, folder / "small.pth")
    for each in ("home", "cache", "config", "tmp"):
        (folder / each).mkdir()
    return folder


def test_no_command_opens_a_connection_or_writes_elsewhere(folder: Path) -> None:
    strays: list[str] = []
    for command, options in _commands():
        trace = folder / f"{command}.strace"
        _traced(folder, command, options.split(), trace)
        for line in trace.read_text(errors="replace").splitlines():
            strays += [f"{command}: {stray}" for stray in _strays(line, folder)]
    assert not strays, f"{len(strays)} calls:\n" + "\n".join(dict.fromkeys(strays))
    home = folder / "home"
    files = (path.relative_to(home).as_posix() for path in sorted(home.rglob("*")) if path.is_file())
    left = [file for file in files if not file.startswith(IN_HOME)]
    assert not left, f"files in the user's home: {left}"


def _commands() -> Iterator[tuple[str, str]]:
    yield "samri-prepare", "-i volumes -o data"
    yield "samri-embed", "--data-dir data --save-dir stores --checkpoint small.pth --device cpu"
    yield (
        "samri-train",
        "--embedding-dir stores --checkpoint small.pth --save-dir trained --epochs 1 --device cpu",
    )
    yield "samri-evaluate", "-m small.pth -o report --data-dir data --device cpu"
    yield "samri-export", "-c trained/best.pth -o bundle --verify quick"
    yield "samri-run", "-c bundle -i scan.nii.gz -o out --slice 2 --box 3 3 15 14"
    yield "samri-doctor", "--model bundle"
    yield "samri-bench", "--model bundle -o bench --rounds 1 --encodes 1 --decodes 1 --provider cpu"


def _traced(folder: Path, command: str, options: list[str], trace: Path) -> None:
    program = f"import sys; from {MODULES[command]} import main; main(prog_name={command!r})"
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    environment |= {
        "PYTHONPATH": os.pathsep.join(PACKAGES),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder / "home"),
        "SAMRI_CACHE_DIR": str(folder / "cache"),
        "SAMRI_CONFIG_DIR": str(folder / "config"),
        "TMPDIR": str(folder / "tmp"),
    }
    start = ["strace", "-f", "-yy", "-qq", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(trace)]
    done = subprocess.run(
        [*start, sys.executable, "-c", program, *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr[-2000:]}"


def _strays(line: str, folder: Path) -> Iterator[str]:
    """What in a line of strace's has no business there."""
    call = line.split(maxsplit=1)[-1]
    if call.startswith("<...") or " = -1 " in call or call.startswith(("---", "+++")):
        return
    name = call.partition("(")[0]
    if name.startswith(("open", "creat", "rename", "mkdir", "unlink")):
        if WRITES.search(call):
            for base, path in QUOTED.findall(call):
                place = os.path.normpath(folder / base / path)
                if not place.startswith((str(folder) + os.sep, *ALLOWED_FILES)):
                    yield f"writes {place}: {call[:200]}"
    elif name == "socket" and not re.search(r"AF_(UNIX|INET6?)\b", call):
        yield f"opens a socket of another kind: {call[:200]}"
    elif name.startswith(SPEAKS) and "AF_UNIX" not in call and "UNIX" not in call:
        yield f"uses the network: {call[:200]}"
    elif name == "bind" and not re.search(r'AF_UNIX|"::1"|"127\.0\.0\.1"', call):
        yield f"can be reached from outside: {call[:200]}"
