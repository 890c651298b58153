from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samri.bundle import Bundle
from samri.errors import BundleError, InputError
from samri.manifest import PRECISIONS, Precision
from samri_export import export_bundle
from samri_runtime import Predictor
from samri_runtime._open_model import _BY_SPEED, precision_for
from samri_runtime.machine import computes_int8_fast
from samri_runtime.providers import PROVIDERS, Provider
from tests.support.parity import picture

pytestmark = pytest.mark.slow  # Whole runs.


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A bundle in every precision, all of them kept without being compared. Don't write into it."""
    output = tmp_path_factory.mktemp("precisions") / "lower"
    return export_bundle(checkpoint, output, precisions=PRECISIONS, verify="off", force=True).folder


def with_proof(lower: Path, folder: Path, below: dict[Precision, list[str]]) -> Path:
    """The same bundle with a manifest that says which precisions were measured, and what failed."""
    shutil.copytree(lower, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["verification"]["variants"] = [
        {"precision": precision, "kept": True, "measured": {"mean_dice": 0.9912}, "below_bar": failed}
        for precision, failed in below.items()
    ]
    path.write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("cpu", "int8"),
        ("openvino", "fp32"),
        ("cuda", "fp16"),
        ("tensorrt", "fp16"),
        ("rocm", "fp16"),
        ("migraphx", "fp16"),
        ("directml", "fp16"),
        ("coreml", "fp16"),
    ],
)
def test_auto_takes_what_suits_the_provider(
    provider: Provider, expected: Precision, lower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samri_runtime._open_model.computes_int8_fast", lambda: True)
    manifest = Bundle.open(with_proof(lower, tmp_path / "b", {"fp16": [], "int8": []})).manifest
    chosen, notes = precision_for(manifest, provider)
    assert chosen == expected
    if expected == "fp32":
        assert notes == []
    else:
        (note,) = notes
        assert expected in note and provider in note and "0.9912" in note


def test_auto_takes_fp32_on_a_cpu_that_computes_integers_no_faster(
    lower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Bundle.open(with_proof(lower, tmp_path / "b", {"int8": []})).manifest
    monkeypatch.setattr("samri_runtime._open_model.computes_int8_fast", lambda: False)
    precision, (note,) = precision_for(manifest, "cpu")
    assert precision == "fp32" and "no integer instructions" in note


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu sse4_2 fma avx2 rdseed\n", False),
        ("model name\t: Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", True),
        ("model name\t: Core\nflags\t\t: fpu avx2 avx_vnni\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd evtstrm aes\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", True),
        ("processor\t: 0\n", True),
        (None, True),
    ],
)
def test_instructions_for_integers_are_read_off_the_system(cpuinfo: str | None, expected: bool, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    assert computes_int8_fast(file) is expected


def test_every_provider_has_its_order() -> None:
    assert set(_BY_SPEED) == set(PROVIDERS) - {"auto"}
    assert all(set(order) == set(PRECISIONS) for order in _BY_SPEED.values())


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
@pytest.mark.parametrize("below", [{}, {"int8": ["Dice"], "fp16": ["Dice"]}])
def test_auto_never_takes_what_was_not_proven(
    provider: Provider, below: dict[Precision, list[str]], lower: Path, tmp_path: Path
) -> None:
    manifest = Bundle.open(with_proof(lower, tmp_path / "b", below)).manifest
    assert precision_for(manifest, provider) == ("fp32", [])


@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_a_predictor_says_which_precision_it_took(
    provider: Provider, lower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samri_runtime._open_model.computes_int8_fast", lambda: True)
    predictor = Predictor(with_proof(lower, tmp_path / "b", {"int8": []}), provider=provider)
    assert predictor.precision == "int8"
    assert any(note.startswith("precision int8, which suits cpu (mean Dice 0.9912") for note in predictor.notes)
    assert {role: graph.precision for role, graph in predictor.graphs.items()} == {
        "encoder": "int8",
        "decoder": "fp32",
        "decoder_image": "fp32",
        "decoder_prompts": "fp32",
    }


def test_precisions_answer_alike_and_do_not_mix(lower: Path) -> None:
    image = picture((150, 110))
    predictors = {precision: Predictor(lower, provider="cpu", precision=precision) for precision in PRECISIONS}
    embeddings = {precision: predictor.encode(image) for precision, predictor in predictors.items()}
    full = predictors["fp32"].predict(embeddings["fp32"], boxes=[[20, 30, 80, 120]])
    half = predictors["fp16"].predict(embeddings["fp16"], boxes=[[20, 30, 80, 120]])
    assert np.abs(half.low_res_logits - full.low_res_logits).max() < 5e-3 * np.ptp(full.low_res_logits)
    integers = predictors["int8"].predict(embeddings["int8"], boxes=[[20, 30, 80, 120]])
    assert np.corrcoef(integers.low_res_logits.ravel(), full.low_res_logits.ravel())[0, 1] > 0.99
    assert not np.array_equal(embeddings["int8"].features, embeddings["fp32"].features)
    for precision, other in (("fp32", "int8"), ("int8", "fp16")):
        with pytest.raises(InputError, match="another encoder"):
            predictors[precision].predict(embeddings[other], boxes=[[20, 30, 80, 120]])  # type: ignore[index]


def manifest_without(lower: Path, folder: Path, *dropped: tuple[str, str]) -> Path:
    """The same bundle without some of its graphs."""
    shutil.copytree(lower, folder)
    path = folder / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    manifest["graphs"] = [g for g in manifest["graphs"] if (g["role"], g["precision"]) not in dropped]
    path.write_text(json.dumps(manifest))
    return folder


def test_auto_runs_a_bundle_that_holds_one_precision_only(lower: Path, tmp_path: Path) -> None:
    int8 = manifest_without(lower, tmp_path / "int8", ("encoder", "fp32"), ("encoder", "fp16"), ("decoder", "fp16"))
    fp16 = manifest_without(lower, tmp_path / "fp16", ("encoder", "fp32"), ("decoder", "fp32"), ("encoder", "int8"))
    for folder, precision in ((int8, "int8"), (fp16, "fp16")):
        for provider in ("auto", "cpu"):
            predictor = Predictor(folder, provider=provider)  # type: ignore[arg-type]
            assert predictor.precision == precision
            predictor.predict(predictor.encode(picture((60, 60))), boxes=[[5, 5, 40, 40]])


def test_a_precision_without_an_encoder_is_refused_before_anything_runs(lower: Path, tmp_path: Path) -> None:
    folder = manifest_without(lower, tmp_path / "b", ("encoder", "int8"))
    with pytest.raises(BundleError, match="holds no int8 encoder"):
        Predictor(folder, provider="cpu", precision="int8")
