"""The model that comes with the package against segment-anything, with the weights that it was exported from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from samri.bundle import Bundle
from samri.hashing import file_sha256
from samri.model import Checkpoint, load_checkpoint
from samri.preprocessing import profile
from samri_export import export_bundle
from samri_export._verification import verify
from samri_runtime import Predictor, models

WEIGHTS = Path(__file__).parents[1] / "weights" / "samri-tiny.pth"


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.open(models.find("samri-tiny"))


@pytest.fixture(scope="module")
def weights() -> Checkpoint:
    return load_checkpoint(WEIGHTS)


def test_the_weights_are_those_that_the_manifest_names(shipped: Bundle, weights: Checkpoint) -> None:
    named = shipped.manifest.checkpoint
    assert file_sha256(WEIGHTS) in (named["sha256"], named.get("rounded_sha256"))
    assert shipped.manifest.backbone == weights.architecture.backbone
    assert WEIGHTS.stat().st_size < 12e6


@pytest.mark.slow
def test_it_gives_segment_anythings_results(shipped: Bundle, weights: Checkpoint) -> None:
    graphs = {"fp32": {role: shipped.graph_path(role) for role in ("encoder", "decoder")}}
    report = verify(weights, profile("samri"), graphs, level="full", progress=lambda line: None)
    assert report.failures() == []
    assert any(case.dice is not None for case in report.cases)


@pytest.mark.slow
def test_its_weights_export_to_the_same_model(shipped: Bundle, tmp_path: Path) -> None:
    source = shutil.copy(WEIGHTS, tmp_path)
    again = export_bundle(source, tmp_path / "again", compact=True, verify="off")
    # The exporter may have changed since; the weights may not.
    assert again.manifest.embedding_id() == shipped.manifest.embedding_id()
    image = np.random.default_rng(3).integers(0, 255, (200, 170)).astype(np.uint8)
    answers = []
    for model in (again.folder, shipped.folder):
        predictor = Predictor(model, "cpu")
        answers.append(predictor.predict(predictor.encode(image), boxes=[[30, 40, 110, 150]]).low_res_logits)
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-3 * np.ptp(answers[1]))
