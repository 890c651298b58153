"""What `samri_runtime` costs: numpy and ONNX Runtime, and no word to the outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from samri_runtime import Predictor
from tests.support.parity import picture

HOST = """
import socket, sys
import numpy as np

BLOCKED = set("torch torchvision onnx onnxsim segment_anything cv2 nibabel click scipy skimage PIL".split())

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())

def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")

socket.socket = socket.create_connection = socket.getaddrinfo = refuse

from samri_runtime import Predictor

predictor = Predictor(sys.argv[1], provider="cpu")
embedding = predictor.encode(np.load(sys.argv[2]))
np.save(sys.argv[3], predictor.predict(embedding, boxes=[[10, 12, 60, 50]], multimask=True).masks)
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(loaded & BLOCKED))
"""


@pytest.mark.parametrize("comes_with_samri", [False, True])
def test_prediction_needs_numpy_and_onnxruntime_alone_and_opens_no_socket(
    comes_with_samri: bool, bundle: Path, tmp_path: Path
) -> None:
    model = "samri-tiny" if comes_with_samri else str(bundle)
    image = picture((70, 90))
    np.save(tmp_path / "image.npy", image)
    arguments = [model, str(tmp_path / "image.npy"), str(tmp_path / "masks.npy")]
    done = subprocess.run([sys.executable, "-c", HOST, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    predictor = Predictor(model, provider="cpu")
    here = predictor.predict(predictor.encode(image), boxes=[[10, 12, 60, 50]], multimask=True).masks
    assert np.array_equal(np.load(tmp_path / "masks.npy"), here)


def test_importing_the_runtime_imports_nothing_else_of_weight() -> None:
    script = "import sys, samri_runtime; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torch", "onnx", "segment_anything", "cv2", "nibabel", "click", "scipy", "matplotlib", "PIL"}
    assert not heavy & set(done.stdout.split())
