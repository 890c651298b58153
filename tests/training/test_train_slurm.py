"""The SLURM scripts, run by bash as SLURM runs them; `srun` and `scontrol` only write down what they are asked."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "training" / "samri_training" / "slurm"
SLURM = {
    "SLURM_JOB_ID": "4001234",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "gpu[01-02]",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "32",
}


def asked(folder: Path, script: str, *arguments: object, **variables: str) -> list[str]:
    """The words behind `srun` of a script."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, does in (("srun", 'printf "%s\\n" "$@"'), ("scontrol", "printf 'gpu01\\ngpu02\\n'")):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    command = ["bash", str(RECIPES / script), *map(str, arguments)]
    environment = {**os.environ, **SLURM, **variables, "PATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_training_is_begun_with_the_options_that_are_given(tmp_path: Path) -> None:
    words = asked(tmp_path, "train_nodes.sh", "stores", "sam.pth", tmp_path / "run", "--epochs", 40)
    assert "--resume" not in words
    assert words[-2:] == ["--epochs", "40"]
    assert words[words.index("--num-workers") + 1] == "7"


def test_a_requeued_job_resumes_with_the_options_that_are_given(tmp_path: Path) -> None:
    (tmp_path / "last.pth").touch()
    words = asked(tmp_path, "train_nodes.sh", "stores", "sam.pth", tmp_path, "--epochs", 80)
    assert words[-5:] == ["samri_training.train", "--resume", str(tmp_path), "--epochs", "80"]


@pytest.mark.parametrize("options", [("--no-amp",), ("--amp", "off"), ("--amp=fp16",)])
def test_the_users_amp_replaces_the_scripts(tmp_path: Path, options: tuple[str, ...]) -> None:
    words = asked(tmp_path, "train_nodes.sh", "stores", "sam.pth", tmp_path / "run", *options)
    assert [word for word in words if word.startswith(("--amp", "--no-amp")) or word == "off"] == list(options)


@pytest.mark.parametrize("script", ["embed_nodes.sh", "train_nodes.sh"])
def test_srun_is_told_how_many_cores_a_task_has(tmp_path: Path, script: str) -> None:
    words = asked(tmp_path, script, "one", "two", "three")
    assert words[: words.index("torchrun")] == ["--cpus-per-task", "32"]


@pytest.mark.parametrize("script", ["embed_nodes.sh", "train_nodes.sh"])
def test_jobs_on_one_node_meet_at_ports_of_their_own(tmp_path: Path, script: str) -> None:
    ports = set()
    for job in ("4001234", "4001235"):
        words = asked(tmp_path, script, "one", "two", "three", SLURM_JOB_ID=job)
        found = re.fullmatch(r"gpu01:(\d+)", words[words.index("--rdzv_endpoint") + 1])
        assert found is not None
        ports.add(int(found[1]))
    assert len(ports) == 2
    # Below those that the system deals out by itself, above those of its services.
    assert all(1024 < port < 32768 for port in ports)


@pytest.mark.parametrize("script", sorted(path.name for path in RECIPES.glob("*.sh")))
def test_a_preempted_job_comes_back(script: str) -> None:
    assert "#SBATCH --requeue\n" in (RECIPES / script).read_text()
