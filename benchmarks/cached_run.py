"""A second prompt on a slice, from process start to written mask: `samri-run` against torch and `SamPredictor`.

    python benchmarks/cached_run.py [--rounds 7] [--encodings 2] [--small] [--folder DIR] [--json FILE]

Every run is a process of its own: it starts Python, loads the model, reads a compressed volume of 193 x 229 x 193
voxels, answers one box on one slice and writes the mask as .nii.gz. In turn, in one run of this program:

- `samri-run`, the slice's embedding in its cache (it writes the provenance and two pictures as well),
- the same with `--no-png`, which writes no more than the peers do (and the provenance),
- torch and segment-anything's `SamPredictor`, with an embedding that it saved itself,
- the same, encoding the slice.

Weights are seeded random ones of ViT-B's shape; masks of all four are compared in the same run. `--small` takes the
tests' small model, to see that it works. `--folder` keeps the model, which takes a minute to export, for the next time.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from samri.metrics import dice
from samri_runtime.cache import EmbeddingCache

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BOX = (60, 80, 130, 160)
SLICE = 90
OURS, OURS_BARE = "samri-run, cached", "samri-run --no-png, cached"
SAVED, ENCODING = "torch SamPredictor, saved embedding", "torch SamPredictor, encoding"

PEER = """
import sys

import nibabel
import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry

checkpoint, scan, index, box, features, output, small = sys.argv[1:]
if small == "yes":
    from samri.model import load_checkpoint
    model = load_checkpoint(checkpoint)
    sam = getattr(model, "sam", model)
else:
    sam = sam_model_registry["vit_b"](checkpoint=checkpoint)
predictor = SamPredictor(sam.eval())
image = nibabel.load(scan)
pixels = np.asarray(image.dataobj)[:, :, int(index)].astype(float)
pixels = np.rint((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255).astype(np.uint8)
if features == "encode" or features.startswith("save:"):
    predictor.set_image(np.repeat(pixels[:, :, None], 3, axis=2))
    if features.startswith("save:"):
        saved = {"features": predictor.features, "sizes": (predictor.original_size, predictor.input_size)}
        torch.save(saved, features.removeprefix("save:"))
else:
    saved = torch.load(features, weights_only=True)
    predictor.features, predictor.is_image_set = saved["features"], True
    predictor.original_size, predictor.input_size = saved["sizes"]
masks, _, _ = predictor.predict(box=np.array([float(value) for value in box.split()]), multimask_output=False)
volume = np.zeros(image.shape, np.uint8)
volume[:, :, int(index)] = masks[0]
nibabel.save(nibabel.Nifti1Image(volume, image.affine), output)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of the runs that don't encode")
    parser.add_argument("--encodings", type=int, default=2, help="rounds in which torch encodes too")
    parser.add_argument("--small", action="store_true", help="the tests' small model rather than ViT-B")
    parser.add_argument("--folder", type=Path, help="where to work; what is there already is used")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = measure(folder, arguments.rounds, arguments.encodings, arguments.small)
    print_report(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def measure(folder: Path, rounds: int, encodings: int, small: bool) -> dict[str, Any]:
    checkpoint, bundle = make_model(folder, small)
    scan = make_scan(folder / "scan.nii.gz")
    peer = folder / "peer.py"
    peer.write_text(PEER, "utf-8")
    cache = folder / "cache"
    EmbeddingCache(cache).clear()

    def ours(output: str, *options: str) -> list[str]:
        box = [str(value) for value in BOX]
        given = ["--model", bundle, "--input", scan, "--output", folder / output, "--axis", 2, "--slice", SLICE]
        given += ["--box", *box, "--provider", "cpu", "--cache-dir", cache, *options]
        return [*samri_run(), *map(str, given)]

    def theirs(features: str, output: str) -> list[str]:
        given = [checkpoint, scan, SLICE, " ".join(map(str, BOX)), features, folder / output, "yes" if small else "no"]
        return [sys.executable, str(peer), *map(str, given)]

    candidates = {
        OURS: ours("full"),
        OURS_BARE: ours("bare", "--no-png"),
        SAVED: theirs(str(folder / "features.pt"), "saved.nii.gz"),
        ENCODING: theirs("encode", "encoded.nii.gz"),
    }
    # Once each without the clock: it fills the cache, saves the peer's embedding and brings all files into memory.
    first = run(ours("full"))
    run(theirs(f"save:{folder / 'features.pt'}", "encoded.nii.gz"))
    if rounds > 1:
        run(candidates[OURS_BARE])
        run(candidates[SAVED])
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(max(rounds, encodings)):
        for name, command in candidates.items():
            if turn < (encodings if name == ENCODING else rounds):
                seconds[name].append(run(command))
    provenance = json.loads((folder / "full" / "scan_seg_.json").read_text("utf-8"))
    assert provenance["embedding"]["from_cache"], "what is measured must not encode"
    masks = {
        OURS: folder / "full" / "scan_seg_.nii.gz",
        OURS_BARE: folder / "bare" / "scan_seg_.nii.gz",
        SAVED: folder / "saved.nii.gz",
        ENCODING: folder / "encoded.nii.gz",
    }
    reference = np.asarray(nibabel.load(masks[ENCODING]).dataobj) > 0
    return {
        "command": " ".join(["python", *sys.argv]),
        "model": "the tests' small model" if small else "ViT-B, seeded random weights",
        "environment": environment(),
        "provider": provenance["provider"]["ran"],
        "first_run": first,
        "seconds": seconds,
        "mask_share": float(reference[:, :, SLICE].mean()),
        "dice": {name: dice(np.asarray(nibabel.load(path).dataobj) > 0, reference) for name, path in masks.items()},
    }


def make_model(folder: Path, small: bool) -> tuple[Path, Path]:
    """A seeded checkpoint and its bundle, made in a process of its own, so that none of it stays in this one."""
    script = (
        "import sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from tests.support.sams import SMALL, VIT_B, save_checkpoint, seeded_sam\n"
        "from samri_export import export_bundle\n"
        "path = save_checkpoint(Path(sys.argv[2]), seeded_sam(SMALL if sys.argv[4] == 'yes' else VIT_B))\n"
        "export_bundle(path, Path(sys.argv[3]), profile='samri', verify='off')\n"
    )
    checkpoint, bundle = folder / "model.pth", folder / "bundle"
    if bundle.is_dir():
        return checkpoint, bundle
    given = [str(ROOT), str(checkpoint), str(bundle), "yes" if small else "no"]
    subprocess.run([sys.executable, "-c", script, *given], check=True)
    return checkpoint, bundle


def make_scan(path: Path) -> Path:
    """A volume of a T1 template's size at 1 mm: an ellipsoid with inner structure, and noise."""
    rng = np.random.default_rng(0)
    shape = (193, 229, 193)
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    inside = (i / 0.7) ** 2 + (j / 0.8) ** 2 + (k / 0.9) ** 2 < 1
    waves = np.sin(4 * i) + np.sin(7 * j + 1) + np.sin(10 * k + 2)
    voxels = (inside * (600 + 100 * waves) + rng.normal(0, 15, shape)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path


def samri_run() -> list[str]:
    """The installed command, as a user starts it."""
    script = Path(sys.executable).with_name("samri-run")
    return [str(script)] if script.is_file() else [sys.executable, "-c", "from samri_runtime.run import main; main()"]


def run(command: list[str]) -> float:
    """Seconds from before the process starts until it has ended."""
    # pip compiles what it installs. A source tree is compiled at its first import, unless this variable forbids it.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    lasted = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return lasted


def environment() -> dict[str, Any]:
    names = ("onnxruntime", "torch", "numpy", "nibabel", "segment-anything")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "wheels": {name: importlib.metadata.version(name) for name in names},
    }


def print_report(report: dict[str, Any]) -> None:
    facts = report["environment"]
    wheels = ", ".join(f"{name} {version}" for name, version in facts["wheels"].items())
    print(f"{report['model']}; Python {facts['python']}, {facts['cores']} cores; {wheels}\n")
    medians = {name: float(np.median(values)) for name, values in report["seconds"].items() if values}
    header = ("seconds from start to end of a process", "median", "p10 to p90", "runs", "times ours", "Dice")
    print("{:42}{:>8}  {:16}{:>5}{:>12}{:>9}".format(*header))
    for name, median in medians.items():
        values = report["seconds"][name]
        low, high = np.percentile(values, [10, 90])
        spread, ratio = f"{low:.2f} to {high:.2f}", median / medians[OURS]
        print(f"{name:42}{median:8.2f}  {spread:16}{len(values):5d}{ratio:12.1f}{report['dice'][name]:9.4f}")
    print(f"\nThe mask covers {report['mask_share']:.0%} of the slice; Dice is with torch's, encoding.")
    print(f"The first run, which encoded and filled the cache, took {report['first_run']:.1f} s.")


if __name__ == "__main__":
    main()
