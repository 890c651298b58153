"""From a scan to masks with the command that a user types, samri-run, and the model that comes with SAMRI.

Two slices of real MRI (the T1 template inside nilearn's package) and one synthetic slice, drawn here, whose truth is
known. No PyTorch, no GPU and no download. The model, samri-tiny, is a demonstration and not for clinical use.

    python examples/demo.py [folder]
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np

from samri.io import read_scan, write_png
from samri.metrics import dice

# In pixels of the slice as shown, x to the right and y down: the patient's right is on the left.
AXIAL = {
    "right frontal horn": (81, 74, 98, 102),
    "left frontal horn": (99, 74, 116, 102),
    "right atrium": (69, 128, 90, 150),
    "left atrium": (107, 128, 128, 150),
    "right caudate head": (78, 77, 92, 99),
}
SAGITTAL = {
    "corpus callosum": (65, 86, 143, 120),
    "pons": (111, 136, 141, 167),
    "cerebellum": (138, 114, 180, 167),
    "thalamus": (102, 105, 119, 120),
}
# Of the synthetic slice, drawn one over the other: center, half axes, degrees, brightness.
HEAD = ((128, 128), (96, 112), 0, 90)
SHAPES = {
    "large ellipse": ((95, 110), (34, 46), 20, 140),
    "small disk": ((165, 95), (14, 14), 0, 40),
    "slanted ellipse": ((160, 160), (36, 13), -35, 190),
    "spot in the large one": ((90, 100), (9, 12), 0, 70),
}


def main() -> int:
    """Segment three slices, and say how long each took and where the pictures are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("demo"), help="for scans, masks and pictures (demo)"
    )
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    print(f"PyTorch is {'installed, and not used' if importlib.util.find_spec('torch') else 'not installed'}.")

    scan = folder / "t1.nii.gz"
    shutil.copyfile(t1_template(), scan)
    for plane, index, boxes in (("axial", 86, AXIAL), ("sagittal", 98, SAGITTAL)):
        segment(scan, folder / plane, boxes, "--plane", plane, "--slice", str(index))

    image, truth = synthetic_slice()
    write_png(folder / "synthetic.png", image)
    boxes = {name: box_around(truth == label) for label, name in enumerate(SHAPES, start=1)}
    output = segment(folder / "synthetic.png", folder / "synthetic", boxes)
    found = read_scan(output / "synthetic_seg_.nii.gz").voxels[0]
    print("Dice with the truth:")
    for label, name in enumerate(SHAPES, start=1):
        print(f"  {dice(found == label, truth == label):.3f}  {name}")

    print("\nLook at")
    for picture in sorted(folder.glob("*/*_overlay.png")):
        print(f"  {picture}")
    return 0


def t1_template() -> Path:
    """The T1 template inside nilearn's package: 197 x 233 x 189 voxels of 1 mm."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        sys.exit("demo: nilearn holds the scan: pip install nilearn")
    return Path(spec.origin).parent / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def segment(scan: Path, output: Path, boxes: dict[str, tuple[int, ...]], *options: str) -> Path:
    """Run samri-run as a user would, its line and its time on the screen; stop where it fails."""
    words = [str(word) for box in boxes.values() for word in ("--box", *box)]
    # Nothing kept from an earlier run, so that the time is that of a first one.
    arguments = ["--input", str(scan), "--output", str(output), "--no-cache", *options, *words]
    print(f"\n$ {shlex.join(['samri-run', *arguments])}", flush=True)
    started = time.perf_counter()
    installed = Path(sysconfig.get_path("scripts")) / "samri-run"
    status = subprocess.run([installed, *arguments], check=False, stdout=subprocess.DEVNULL).returncode
    if status:
        sys.exit(status)
    print(f"{time.perf_counter() - started:.1f} s from the start of the process to masks and pictures of", end=" ")
    print(", ".join(boxes), flush=True)
    return output


def synthetic_slice():
    """A head with shapes in it, (256, 256) uint8, uneven, blurred and noisy as MRI is; and their labels, 1 to 4."""
    image, labels = np.full((256, 256), 8.0), np.zeros((256, 256), dtype=np.uint8)
    for label, (center, half_axes, degrees, brightness) in enumerate((HEAD, *SHAPES.values())):
        inside = ellipse(center, half_axes, degrees)
        image[inside], labels[inside] = brightness, label
    rows, columns = np.mgrid[:256, :256] / 256
    random = np.random.default_rng(0)
    blurred = sum(np.roll(image, shift, axis=(0, 1)) for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))) / 5
    scanned = blurred * (0.8 + 0.3 * rows + 0.2 * columns * rows) + random.normal(0, 6, image.shape)
    return scanned.clip(0, 255).astype(np.uint8), labels


def ellipse(center, half_axes, degrees):
    rows, columns = np.mgrid[:256, :256]
    offset = (columns - center[0]) + 1j * (rows - center[1])
    turned = offset * np.exp(-1j * np.deg2rad(degrees))
    return (turned.real / half_axes[0]) ** 2 + (turned.imag / half_axes[1]) ** 2 <= 1


def box_around(mask):
    """X1 Y1 X2 Y2, two pixels wider than the mask on every side."""
    rows, columns = np.nonzero(mask)
    return int(columns.min()) - 2, int(rows.min()) - 2, int(columns.max()) + 3, int(rows.max()) + 3


if __name__ == "__main__":
    sys.exit(main())
