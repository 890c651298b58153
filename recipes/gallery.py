"""Draws the pictures of docs/gallery.md: scans and synthetic slices, prompts on them, and the masks of samri-tiny.

    python recipes/gallery.py --output docs/images/gallery

The MNI152 template comes with nilearn. Colin27 and the macaque template (Debian's package mricron-data, BSD) and the
label maps (SynthSeg, Apache-2.0) lie in the folder that SAMRI_TEST_DATA names, in `mricron/` and `synthseg_labels/`;
without it their pictures are left as they are, and a line notes it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.patches import Rectangle

from samri.geometry import plane_view
from samri.io import PALETTE, read_scan
from samri_runtime import Predictor
from samri_tiny.synthesis import draw_shapes, draw_slice, read_label_maps, visible_parts

Box = tuple[float, float, float, float]
Mask = npt.NDArray[np.bool_]

COLORS = [tuple(value / 255 for value in color) for color in PALETTE]
WIDTH, DPI = 8.4, 100  # Inches, and pixels per inch.
LEGEND_ROW = 0.26  # Inches.
DRAWN = (("drawn-inverted", 0, 30, 6), ("drawn-noisy", 0, 6, 6), ("failure-cortex", 1, 39, 4))
"""Slices drawn from label maps: name, which subject, seed, and how many structures to ask for."""


@dataclass(frozen=True)
class Scene:
    """A slice, the prompts on it, and the part of it to show.

    Attributes:
        name: Name of the picture's file.
        image: (H, W), any real dtype.
        boxes: Name of a structure to its box, XYXY in pixels of the slice.
        truth: Name of a structure to its mask (H, W), where one is known.
        point: (x, y) of a positive point to ask for three candidates with, in place of boxes.
        window: XYXY of the part to show; all of the slice if None.
    """

    name: str
    image: npt.NDArray[Any]
    boxes: Mapping[str, Box] = field(default_factory=dict)
    truth: Mapping[str, Mask] = field(default_factory=dict)
    point: tuple[float, float] | None = None
    window: Box | None = None


def main() -> None:
    """Draw every scene whose data is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/images/gallery"), help="folder for the pictures")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    predictor = Predictor("samri-tiny", provider="cpu")
    for scene in scenes():
        draw(scene, predictor, output / f"{scene.name}.webp")


def scenes() -> Iterator[Scene]:
    """All scenes, in the order of the page."""
    yield from template_scenes()
    data = os.environ.get("SAMRI_TEST_DATA")
    if data is None:
        print("SAMRI_TEST_DATA is not set: pictures of Colin27, the macaque and label maps are left as they are")
        return
    yield from colin_scenes(Path(data) / "mricron")
    yield macaque_scene(Path(data) / "mricron")
    yield from drawn_scenes(Path(data) / "synthseg_labels")


def template_scenes() -> Iterator[Scene]:
    """The MNI152 T1 template."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise SystemExit("the MNI152 template comes with nilearn: pip install nilearn")
    file = Path(spec.origin).parent / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    ventricles = {
        "right frontal horn": (81, 74, 98, 102),
        "left frontal horn": (99, 74, 116, 102),
        "right atrium": (69, 128, 90, 150),
        "left atrium": (107, 128, 128, 150),
    }
    yield Scene("template-axial", cut(file, "axial", 86), ventricles, window=(39, 52, 159, 162))
    pair = {"both caudate heads": (78, 76, 119, 100)}
    yield Scene("failure-pair", cut(file, "axial", 86), pair, window=(58, 54, 139, 124))


def colin_scenes(folder: Path) -> Iterator[Scene]:
    """Colin27, a whole head, with the outlines of the AAL atlas where it has the structure."""
    head, atlas = folder / "ch2.nii.gz", folder / "aal.nii.gz"
    names = {"right caudate": 72, "left caudate": 71, "right putamen": 74, "left putamen": 73}
    labels = cut(atlas, "axial", 80)
    truth = {name: labels == code for name, code in names.items()}
    boxes = {name: box_around(mask) for name, mask in truth.items()}
    yield Scene("colin-axial", cut(head, "axial", 80), boxes, truth, window=(22, 32, 158, 168))
    midline = {
        "corpus callosum": (50, 73, 133, 108),
        "brain stem": (96, 122, 140, 180),
        "cerebellum": (126, 108, 182, 150),
    }
    yield Scene("colin-sagittal", cut(head, "sagittal", 89), midline, window=(5, 5, 216, 181))
    ventricles = {
        "right ventricle": (67, 76, 88, 98),
        "left ventricle": (89, 76, 110, 98),
        "brain stem": (66, 110, 112, 160),
    }
    yield Scene("colin-coronal", cut(head, "coronal", 100), ventricles, window=(10, 10, 170, 175))
    yield Scene("points", cut(head, "axial", 88), point=(98, 80), window=(40, 50, 140, 150))
    thalami = {name: labels == code for name, code in (("right thalamus", 78), ("left thalamus", 77))}
    boxes = {name: box_around(mask) for name, mask in thalami.items()}
    yield Scene("faint", cut(head, "axial", 80), boxes, thalami, window=(42, 62, 138, 158))


def macaque_scene(folder: Path) -> Scene:
    """INIA19, a template of rhesus macaques: a brain that is no person's, at half a millimeter."""
    ventricles = {
        "right ventricle": (69, 68, 84, 122),
        "left ventricle": (84, 68, 100, 122),
    }
    return Scene("macaque", cut(folder / "inia19-t1-brain.nii.gz", "axial", 76), ventricles, window=(20, 25, 150, 190))


def drawn_scenes(folder: Path) -> Iterator[Scene]:
    """Slices drawn from label maps of subjects that no training saw, and one of shapes; masks are exact."""
    subjects = read_label_maps([folder / f"training_seg_{number}.nii.gz" for number in ("05", "10")])
    for name, subject, seed, count in DRAWN:
        slice_ = draw_slice(subjects[subject], np.random.default_rng(seed), (256, 256))
        yield drawn(name, slice_, count)
    yield drawn("shapes", draw_shapes(np.random.default_rng(24), (256, 256)), 6)


def drawn(name: str, slice_: Any, count: int) -> Scene:
    """The largest parts that can be seen whose boxes lie apart, without those that fill the slice."""
    parts = [part.mask for part in visible_parts(slice_, 120) if part.mask.mean() < 0.05]
    chosen: list[Mask] = []
    for mask in sorted(parts, key=np.count_nonzero, reverse=True):
        if len(chosen) < count and not any(overlap(box_around(mask), box_around(other)) for other in chosen):
            chosen.append(mask)
    truth = {f"part {number}": mask for number, mask in enumerate(chosen, start=1)}
    return Scene(name, slice_.image, {key: box_around(mask) for key, mask in truth.items()}, truth)


def cut(file: Path, plane: Any, index: int) -> npt.NDArray[Any]:
    """One slice of a volume as radiologists look at it, (H, W)."""
    scan = read_scan(file)
    return plane_view(scan.grid, scan.affine, plane, index).extract(scan.voxels)


def box_around(mask: Mask) -> Box:
    """X1 Y1 X2 Y2, one pixel wider than the mask on every side."""
    rows, columns = np.nonzero(mask)
    return float(columns.min() - 1), float(rows.min() - 1), float(columns.max() + 2), float(rows.max() + 2)


def overlap(first: Box, second: Box) -> bool:
    """Whether two boxes share a pixel."""
    return max(first[0], second[0]) < min(first[2], second[2]) and max(first[1], second[1]) < min(first[3], second[3])


def dice(first: Mask, second: Mask) -> float:
    """Overlap of two masks (H, W), 0 to 1."""
    return 2 * int(np.count_nonzero(first & second)) / max(int(np.count_nonzero(first) + np.count_nonzero(second)), 1)


def draw(scene: Scene, predictor: Predictor, file: Path) -> None:
    """Prompts on the left, masks on the right, names below: nothing lies over a mask but its own outline."""
    embedding = predictor.encode(scene.image)
    if scene.point is not None:
        found = predictor.predict(embedding, points=[scene.point], point_labels=[1], multimask=True)
        masks, scores = found.masks[0], found.scores[0]
        entries = [f"candidate {number}, score {score:.2f}" for number, score in enumerate(scores, start=1)]
    else:
        masks = predictor.predict(embedding, boxes=list(scene.boxes.values())).masks
        entries = [
            f"{name}, Dice {dice(mask, scene.truth[name]):.2f}" if name in scene.truth else name
            for name, mask in zip(scene.boxes, masks, strict=True)
        ]
    panels = 1 + (len(masks) if scene.point is not None else 1)
    left, top, right, bottom = window(scene)
    legend_columns = len(entries) if sum(len(entry) + 8 for entry in entries) < 105 else 3
    legend_height = 0.12 + LEGEND_ROW * -(-len(entries) // legend_columns)
    height = WIDTH / panels * (bottom - top) / (right - left) + legend_height
    figure, axes = plt.subplots(1, panels, figsize=(WIDTH, height), dpi=DPI, facecolor="black")
    for axis in axes:
        show(axis, scene)
    if scene.point is not None:
        axes[0].plot(*scene.point, "o", markersize=9, color="white", markeredgecolor="black", markeredgewidth=1.5)
        for number, (axis, mask) in enumerate(zip(axes[1:], masks, strict=True)):
            show_mask(axis, mask, COLORS[number])
    for number, (box, mask) in enumerate(zip(scene.boxes.values(), masks, strict=False)):
        corner, size = (box[0] - 0.5, box[1] - 0.5), (box[2] - box[0], box[3] - box[1])
        axes[0].add_patch(Rectangle(corner, *size, fill=False, linewidth=1.8, edgecolor=COLORS[number]))
        show_mask(axes[1], mask, COLORS[number])
    handles = [Rectangle((0, 0), 1, 1, color=COLORS[number]) for number in range(len(entries))]
    figure.legend(
        handles, entries, loc="lower center", ncols=legend_columns, frameon=False, labelcolor="white", fontsize=10
    )
    figure.subplots_adjust(left=0, right=1, top=1, bottom=legend_height / height, wspace=0.01)
    save(figure, file)
    print(f"{file.name}: {'; '.join(entries)}")


def window(scene: Scene) -> Box:
    """The part of the slice to show, XYXY."""
    return scene.window or (0, 0, scene.image.shape[1], scene.image.shape[0])


def show(axis: Any, scene: Scene) -> None:
    """The slice in gray, its window only."""
    low, high = np.percentile(scene.image, (0.5, 99.5))
    axis.imshow(scene.image, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
    left, top, right, bottom = window(scene)
    axis.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
    axis.set_axis_off()


def show_mask(axis: Any, mask: Mask, color: tuple[float, ...]) -> None:
    """A mask filled thinly and outlined."""
    axis.imshow(np.ma.masked_where(~mask, mask), cmap=matplotlib.colors.ListedColormap([color]), alpha=0.4)
    if mask.any():
        axis.contour(mask.astype(float), [0.5], colors=[color], linewidths=1.5)


def save(figure: Any, file: Path) -> None:
    """WebP of at most 60 kB."""
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., 2::-1]
    plt.close(figure)
    for quality in (90, 80, 70, 60):
        cv2.imwrite(str(file), picture, [cv2.IMWRITE_WEBP_QUALITY, quality])
        if file.stat().st_size <= 60_000:
            return
    raise SystemExit(f"{file} is larger than 60 kB")


if __name__ == "__main__":
    main()
