"""What is measured: a case (provider, precision, threads) and a scene (a slice and boxes on it)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError, ProviderError
from samri.geometry import axis_view, whole_view
from samri.manifest import Manifest, Precision
from samri.process import usable_cores
from samri_runtime.providers import Provider, load_onnxruntime
from samri_runtime.providers._names import auto_candidates
from samri_runtime.providers._opening import open_probe
from samri_runtime.providers._wheels import installed_wheels, plugin_providers

_SIDE = 256
_GRID = 4


@dataclass(frozen=True)
class BenchCase:
    """A provider, a precision and a number of threads.

    Attributes:
        provider: A named one; never `auto`, whose choice would be hidden.
        precision: Precision of the graphs.
        threads: CPU threads; None for one per core.
        options: Passed to the provider.
        static_shapes: As for `Predictor`.
        name: For tables, in place of the options.
    """

    provider: Provider
    precision: Precision = "fp32"
    threads: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    static_shapes: bool | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.provider == "auto":
            raise ProviderError("auto can't be measured, since its choice differs by machine: name a provider")

    @property
    def label(self) -> str:
        """The provider, and settings other than precision and threads."""
        static = {None: "", True: " static", False: " free shapes"}[self.static_shapes]
        settings = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"{self.provider}{static}{' ' + self.name if self.name else settings}"

    def __str__(self) -> str:
        threads = f" {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.label} {self.precision}{threads}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "provider": self.provider,
            "precision": self.precision,
            "threads": self.threads,
            "options": dict(self.options),
            "static_shapes": self.static_shapes,
            "name": self.name,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BenchCase:
        """The case from the values of `to_json`."""
        return cls(**values)


REFERENCE = BenchCase("cpu")
"""The case that all others are compared with: fp32 on the CPU."""


def cases(
    providers: Sequence[Provider],
    precisions: Sequence[Precision],
    threads: Sequence[int | None],
    options: Mapping[str, str] | None = None,
    static_shapes: bool | None = None,
) -> list[BenchCase]:
    """All combinations; options go to every provider but the CPU, which has none."""
    return [
        BenchCase(provider, precision, count, {} if provider == "cpu" else dict(options or {}), static_shapes)
        for provider, precision, count in product(providers, precisions, threads)
    ]


def accelerator_cases(precisions: Sequence[Precision]) -> list[BenchCase]:
    """For `--gpu`: the accelerators that work here, with default settings and with faster ones."""
    providers = usable_providers()
    if "cuda" in providers and _works("tensorrt"):  # Not among the candidates of `auto`, since it compiles for minutes.
        providers.append("tensorrt")
    return [case for provider in providers for case in _variants(provider, precisions)]


def usable_providers() -> list[Provider]:
    """The providers of the installed wheels that compute a tiny graph correctly; the CPU first."""
    wheels = installed_wheels()
    offered = [*load_onnxruntime().get_available_providers(), *plugin_providers(wheels)]
    *accelerators, cpu = auto_candidates(offered)
    return [provider for provider in (cpu, *accelerators) if _works(provider)]


def _works(provider: Provider) -> bool:
    try:
        open_probe(provider)
    except ProviderError:
        return False
    return True


def thread_counts() -> list[int | None]:
    """The thread counts that `--tune` tries: the default, half the cores and one."""
    cores = usable_cores()
    return [None, *sorted({max(1, cores // 2), 1} - {cores}, reverse=True)]


def precisions_of(manifest: Manifest) -> tuple[Precision, ...]:
    """The precisions in which a bundle holds an encoder, fp32 first."""
    return manifest.precisions("encoder")


def _variants(provider: Provider, precisions: Sequence[Precision]) -> Iterator[BenchCase]:
    if provider == "cpu":
        return
    for precision in precisions:
        yield BenchCase(provider, precision)
    if provider == "cuda":
        for precision in precisions:
            yield BenchCase("cuda", precision, options={"enable_cuda_graph": "1"}, name="with CUDA graphs")
        yield BenchCase("cuda", "fp32", options={"use_tf32": "1"}, name="with TensorFloat-32")
    if provider == "tensorrt":
        yield BenchCase("tensorrt", "fp32", options={"trt_fp16_enable": "1"}, name="in fp16")


@dataclass(frozen=True, eq=False)
class Scene:
    """A slice and boxes.

    Attributes:
        name: For reports; not a path.
        image: (H, W) or (H, W, 3).
        boxes: (B, 4) XYXY in pixels of the slice.
    """

    name: str
    image: npt.NDArray[np.generic]
    boxes: npt.NDArray[np.float64]


def phantom_scene() -> Scene:
    """A synthetic slice of 16 bright ellipses on a dark, uneven, noisy background, and a box around each."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    image = 30 + 20 * np.sin(rows / 40) * np.cos(columns / 55) + rng.normal(0, 4, (_SIDE, _SIDE))
    cell = _SIDE / _GRID
    boxes = []
    for row in range(_GRID):
        for column in range(_GRID):
            y, x = (row + 0.5) * cell + rng.uniform(-6, 6), (column + 0.5) * cell + rng.uniform(-6, 6)
            height, width = rng.uniform(10, 22, 2)
            image += 90 * (((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1)
            boxes.append([x - width, y - height, x + width, y + height])
    return Scene("phantom", image.astype(np.float32), np.clip(np.array(boxes), 0, _SIDE))


def scan_scene(path: str | Path, index: int | None = None, boxes: npt.ArrayLike | None = None) -> Scene:
    """A slice of a scan.

    Args:
        path: A file that `samri.read_scan` reads.
        index: Slice of a volume along its last axis; by default the middle one.
        boxes: (B, 4) XYXY; by default 16 boxes that tile the slice.

    Raises:
        InputError: The scan can't be read, or has no such slice.
        MissingDependencyError: nibabel or OpenCV isn't installed.
    """
    from samri.io import read_scan

    scan = read_scan(Path(path))
    volume = scan.kind != "raster" and len(scan.grid) == 3
    if not volume and index is not None:
        raise InputError(f"{path} is one slice: leave out --slice")
    view = axis_view(scan.grid, 2, scan.grid[2] // 2 if index is None else index) if volume else whole_view(scan.grid)
    image = view.extract(scan.voxels)
    scene_boxes = (
        _tiles(image.shape[0], image.shape[1]) if boxes is None else np.atleast_2d(np.asarray(boxes, np.float64))
    )
    return Scene(scan.path.name, image, scene_boxes)


def _tiles(height: int, width: int) -> npt.NDArray[np.float64]:
    """4 x 4 overlapping boxes over the middle of the slice, each 1.5 times as wide and high as its cell."""
    centers = [
        ((column + 1) * width / (_GRID + 1), (row + 1) * height / (_GRID + 1))
        for row in range(_GRID)
        for column in range(_GRID)
    ]
    half = 0.75 * np.array([width, height]) / (_GRID + 1)
    return np.array([[*(np.array(center) - half), *(np.array(center) + half)] for center in centers])
