"""From a checkpoint to a mask on real MRI, with the two commands that a user types: samri-export, then samri-run.

The scan is the T1 template that comes with nilearn. The checkpoint is a small SAM with seeded random weights, made
here: the masks therefore mean nothing. What the demo shows is the way: .pth to ONNX, boxes on a slice, a mask in the
scan's own space and a picture of it.

    python examples/demo.py [folder]
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

SEED = 7
SIDE, PATCH, CHANNELS = 256, 16, 128
# Pixels of axial slice 90 as shown: the lateral ventricles, the patient's right one first.
SLICE, BOXES = "90", (("68", "76", "99", "149"), ("101", "76", "132", "149"))


def main() -> int:
    """Make a checkpoint, export it, run it, and say where the picture is."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    scan, checkpoint, bundle, results = (folder / name for name in ("t1.nii.gz", "seeded_sam.pth", "bundle", "results"))
    shutil.copyfile(t1_template(), scan)
    print("NOTE: seeded random weights, not a trained model. The masks below mean nothing.", flush=True)
    torch.save(seeded_sam().state_dict(), checkpoint)
    export = ["--checkpoint", str(checkpoint), "--output", str(bundle), "--profile", "samri", "--verify", "quick"]
    call("samri-export", *export, "--overwrite")
    prompt = ["--plane", "axial", "--slice", SLICE, *(word for box in BOXES for word in ("--box", *box))]
    call("samri-run", "--model", str(bundle), "--input", str(scan), "--output", str(results), *prompt)
    print(f"\nLook at {results / 't1_overlay.png'} (masks of an untrained model: they mean nothing).")
    return 0


def t1_template() -> Path:
    """The T1 template inside nilearn's package: 197 x 233 x 189 voxels of 1 mm."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        sys.exit("demo: nilearn holds the scan: pip install nilearn")
    return Path(spec.origin).parent / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def seeded_sam() -> Sam:
    """A SAM small enough to export in seconds; the same weights every time."""
    torch.manual_seed(SEED)
    grid = SIDE // PATCH
    return Sam(
        ImageEncoderViT(
            img_size=SIDE,
            patch_size=PATCH,
            embed_dim=192,
            depth=4,
            num_heads=6,
            out_chans=CHANNELS,
            use_rel_pos=True,
            window_size=7,
            global_attn_indexes=(1, 3),
        ),
        PromptEncoder(CHANNELS, (grid, grid), (SIDE, SIDE), mask_in_chans=16),
        MaskDecoder(transformer_dim=CHANNELS, transformer=TwoWayTransformer(2, CHANNELS, num_heads=8, mlp_dim=512)),
    )


def call(command: str, *arguments: str) -> None:
    """Run a command as a user would, with its name and its time on the screen; stop where it fails."""
    installed = Path(sysconfig.get_path("scripts")) / command
    print(f"\n$ {shlex.join([command, *arguments])}", flush=True)
    started = time.perf_counter()
    status = subprocess.run([installed, *arguments], check=False).returncode
    if status:
        sys.exit(status)
    print(f"({time.perf_counter() - started:.1f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
