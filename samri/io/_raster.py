"""PNG, JPEG and TIFF through OpenCV, in RGB order."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.io._raster_checks import (
    GRAY_ALPHA,
    MOST_PAGES,
    PNG_START,
    BrokenFileError,
    checked_png,
    jpeg_damage,
    jpeg_size,
    png_header,
    png_size,
    raster_format,
    tiff_damage,
    tiff_page,
)
from samri.io._tiff_strips import check_deflate
from samri.io.optional import require
from samri.opening import read_regular
from samri.staging import staged_file
from samri.stderr import captured_stderr, pass_on

_MOST_PIXELS = 1 << 28
_MOST_BYTES = 1 << 32  # Of a file; as many pixels take no more without any compression.
_SILENT, _WARNING = 0, 3  # OpenCV's LOG_LEVEL_SILENT and LOG_LEVEL_WARNING, which not every version names.

# OpenCV's log level belongs to the process: it is the highest that one of several readers at once needs, and the last
# one restores it.
_level_lock = threading.Lock()
_levels_needed: list[int] = []
_level_before = _WARNING


def read_raster(path: Path) -> npt.NDArray[Any]:
    """Read one picture: (H, W), or (H, W, 3) in RGB order, in the file's own depth.

    Alpha is dropped; the EXIF orientation is applied, so that pixels are counted as viewers show them.

    Raises:
        InputError: Not whole, not a PNG, JPEG or TIFF, or a TIFF with several pages.
        OSError: The file can't be opened.
    """
    cv2 = require("cv2")
    # Bytes, not a name: OpenCV on Windows opens no name beyond ASCII.
    data = _checked(path, read_regular(path, limit=_MOST_BYTES))
    kind = raster_format(data)
    complaints = contextlib.nullcontext() if kind == "PNG" else _undamaged(path, "TIFF" if kind == "TIFF" else "JPEG")
    with complaints, _log_level(cv2, _WARNING if kind == "TIFF" else _SILENT):
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
        except cv2.error as error:
            raise InputError(f"{path} can't be decoded ({error.err or 'OpenCV'}): save it as a plain PNG") from error
        if pixels is None or pixels.size == 0:
            raise InputError(f"{path} is damaged, or of a kind that OpenCV can't decode: save it as a plain PNG")
    if pixels.ndim == 3 and data.startswith(PNG_START) and png_header(data).color == GRAY_ALPHA:
        pixels = pixels[..., 0]  # OpenCV makes gray with alpha three equal channels in a PNG, and one in a TIFF.
    return np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., ::-1])


def write_png(path: str | Path, image: npt.NDArray[np.uint8]) -> None:
    """Write (H, W) gray or (H, W, 3) RGB uint8 as PNG; the file appears whole or not at all.

    Raises:
        OutputError: The file can't be written.
    """
    cv2 = require("cv2")
    encoded = cv2.imencode(".png", image if image.ndim == 2 else image[..., ::-1])[1]
    with staged_file(path) as staged:
        staged.write_bytes(encoded.tobytes())


def _checked(path: Path, data: bytes) -> bytes:
    """The bytes to decode, once they are known to be one whole picture."""
    if not data:
        raise InputError(f"{path} is empty: copy it again")
    kind = raster_format(data)
    if kind is None:
        raise InputError(f"{path} is not a PNG, JPEG or TIFF file despite its name: check the name")
    try:
        if kind == "PNG":
            _check_pixels(path, png_size(data))
            data = checked_png(data)
        elif kind == "JPEG":
            _check_pixels(path, jpeg_size(data))
        else:
            pages, size, data = tiff_page(data)
            if pages > 1:
                count = f"{pages} or more" if pages == MOST_PAGES else pages
                raise InputError(
                    f"{path} has {count} pages: save the page you need as its own file, or a volume as NIfTI"
                )
            _check_pixels(path, size)
            check_deflate(data, size)
    except BrokenFileError as error:
        raise InputError(f"{path} is a damaged {kind} file ({error}): copy it again") from error
    return data


def _check_pixels(path: Path, size: tuple[int, int]) -> None:
    """Before memory is asked for: a small file may promise any number of pixels."""
    width, height = size
    if width * height > _MOST_PIXELS:
        raise InputError(
            f"{path} has {width} x {height} pixels by its header, and more than {_MOST_PIXELS} are not read: "
            "crop it to the part you need"
        )


@contextlib.contextmanager
def _undamaged(path: Path, kind: Literal["JPEG", "TIFF"]) -> Iterator[None]:
    """Refuse what libjpeg or libtiff only complains of on stderr: they fill the picture with something, and go on."""
    with captured_stderr() as log:
        yield
    damage, others = (jpeg_damage if kind == "JPEG" else tiff_damage)("".join(log))
    pass_on(others)
    if damage is not None:
        raise InputError(
            f"{path} is a damaged {kind} file ({damage}): copy it again, or if it looks right in a viewer, "
            "save it as PNG"
        )


@contextlib.contextmanager
def _log_level(cv2: Any, level: int) -> Iterator[None]:
    """OpenCV logs why a picture can't be decoded, in several lines; the error says it in one."""
    global _level_before
    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # OpenCV 4, OpenCV 5.
    with _level_lock:
        if not _levels_needed:
            _level_before = log.getLogLevel()
        _levels_needed.append(level)
        log.setLogLevel(max(_levels_needed))
    try:
        yield
    finally:
        with _level_lock:
            _levels_needed.remove(level)
            log.setLogLevel(max(_levels_needed, default=_level_before))
