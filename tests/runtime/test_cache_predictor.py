"""`Predictor(..., cache=...)`: the encoder runs once for a slice, and the masks are the same without it."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samri.errors import BundleError, InputError
from samri_runtime import Embedding, Predictor, SamPredictor
from samri_runtime.cache import EmbeddingCache
from tests.support.parity import picture

BOX = [10, 12, 60, 50]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "embeddings").iterdir())


def test_a_cached_embedding_needs_no_encoder_and_gives_the_same_mask(copy: Path, tmp_path: Path) -> None:
    image = picture((70, 90))
    first = Predictor(copy, "cpu", cache=tmp_path / "cache")
    embedding = first.encode(image)
    assert not embedding.cached
    assert first.providers == {"encoder": "cpu", "decoder": "cpu"}

    # Neither opened nor hashed: it isn't even there.
    (copy / "encoder.onnx").unlink()
    later = Predictor(copy, "cpu", cache=tmp_path / "cache")
    again = later.encode(image)
    assert again.cached
    assert again.features.tobytes() == embedding.features.tobytes()
    assert (again.shape, again.embedding_id, again.provenance) == (
        embedding.shape,
        embedding.embedding_id,
        embedding.provenance,
    )
    assert later.providers == {"decoder": "cpu"}, "the encoder ran nowhere in this process"
    expected, mask = first.predict(embedding, boxes=BOX), later.predict(again, boxes=BOX)
    assert mask.low_res_logits.tobytes() == expected.low_res_logits.tobytes()
    with pytest.raises(BundleError, match=r"encoder\.onnx is missing"):
        later.encode(image[::-1])


def test_an_entry_says_how_it_came_about(bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle, "cpu", cache=tmp_path)
    predictor.encode(picture((70, 90)))
    made = predictor.encode(picture((70, 90))).provenance
    assert made["encoder"] == predictor.bundle.graph("encoder").file.sha256
    assert made["provider"] == "cpu"
    assert {"samri", "onnxruntime", "created"} < made.keys()


def test_without_a_cache_nothing_is_written_and_the_encoder_runs_each_time(bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle, "cpu")
    assert predictor.cache is None
    assert not any(predictor.encode(picture((70, 90))).cached for _ in range(2))
    assert list(tmp_path.iterdir()) == []


def test_an_image_of_the_same_numbers_is_another_one_where_the_profile_may_treat_it_so(
    bundle: Path, tmp_path: Path
) -> None:
    predictor = Predictor(bundle, "cpu", cache=tmp_path)
    image = picture((70, 90))
    variants: list[tuple[Any, Any]] = [
        (image, None),
        (image.astype(np.int16), None),
        (image, (0.0, 255.0)),
        (image, (0.0, 200.0)),
    ]
    for pixels, window in (*variants, (image.T, None), (np.dstack([image] * 3), None)):
        assert not predictor.encode(pixels, window).cached
        assert predictor.encode(pixels.copy(order="F"), window).cached


def test_what_is_no_image_is_refused_as_without_a_cache(bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle, "cpu", cache=tmp_path)
    bad = picture((70, 90)).astype(np.float32)
    bad[3, 4] = np.nan
    for image in (bad, np.zeros((0, 4)), np.zeros(7), np.zeros((3, 4, 2)), np.zeros((3, 4), complex)):
        for _ in range(2):
            with pytest.raises(InputError):
                predictor.encode(image)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_entry_is_computed_again_and_said_so(bundle: Path, tmp_path: Path) -> None:
    image = picture((70, 90))
    expected = Predictor(bundle, "cpu", cache=tmp_path).encode(image)
    (entry,) = entries(tmp_path)
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data)
    predictor = Predictor(bundle, "cpu", cache=tmp_path)
    embedding = predictor.encode(image)
    assert not embedding.cached
    (note,) = embedding.notes
    assert "damaged" in note
    assert str(entry) in note
    np.testing.assert_array_equal(embedding.features, expected.features)
    assert predictor.encode(image).cached


def test_a_cache_that_cannot_be_written_fails_nothing(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    embedding = Predictor(bundle, "cpu", cache=tmp_path / "file").encode(picture((70, 90)))
    assert not embedding.cached
    assert embedding.notes
    assert all("\n" not in note for note in embedding.notes)


def test_half_precision_answers_alike_before_and_after(bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle, "cpu", cache=EmbeddingCache(tmp_path, precision="fp16"))
    first, second = (predictor.encode(picture((70, 90))) for _ in range(2))
    assert (first.cached, second.cached) == (False, True)
    exact = Predictor(bundle, "cpu").encode(picture((70, 90)))
    assert first.features.tobytes() == second.features.tobytes() != exact.features.tobytes()
    answers = [predictor.predict(one, boxes=BOX).logits()[0] for one in (first, exact)]
    assert np.abs(answers[0] - answers[1]).max() < 1e-2 * np.ptp(answers[1])


def test_threads_may_share_a_predictor_and_its_cache(bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle, "cpu", cache=tmp_path)
    images = [picture((70, 90), seed) for seed in range(4)]
    expected = [Predictor(bundle, "cpu").encode(image).features for image in images]
    with ThreadPoolExecutor(8) as pool:
        for number, embedding in enumerate(pool.map(predictor.encode, images * 6)):
            assert embedding.notes == ()
            np.testing.assert_allclose(embedding.features, expected[number % 4], atol=1e-5)
    assert len(entries(tmp_path)) == 4


def test_metas_interface_uses_the_cache_too(bundle: Path, tmp_path: Path) -> None:
    image = np.dstack([picture((70, 90))] * 3)
    SamPredictor(bundle, provider="cpu", cache=tmp_path).set_image(image)
    later = SamPredictor(bundle, provider="cpu", cache=tmp_path)
    later.set_image(image)
    assert later.predictor.providers == {"decoder": "cpu"}
    assert later.predict(box=np.array(BOX))[0].shape == (3, 70, 90)


def test_an_embedding_made_elsewhere_is_prompted_here_without_the_encoder(copy: Path, tmp_path: Path) -> None:
    image = picture((70, 90))
    elsewhere = Predictor(copy, "cpu")
    embedding = elsewhere.encode(image)
    embedding.save(tmp_path / "slice.safetensors")
    expected = elsewhere.predict(embedding, boxes=BOX).masks
    (copy / "encoder.onnx").unlink()
    here = Predictor(copy, "cpu")
    np.testing.assert_array_equal(
        here.predict(Embedding.load(tmp_path / "slice.safetensors"), boxes=BOX).masks, expected
    )


def test_a_cache_folder_that_was_copied_serves_at_its_new_place(copy: Path, tmp_path: Path) -> None:
    Predictor(copy, "cpu", cache=tmp_path / "there").encode(picture((70, 90)))
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    (copy / "encoder.onnx").unlink()
    assert Predictor(copy, "cpu", cache=tmp_path / "here").encode(picture((70, 90))).cached
