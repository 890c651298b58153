"""That training teaches something: eight slices by heart, and more than that on slices it hasn't seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from segment_anything.modeling import Sam

from samri_training.train import Settings, train
from tests.support.stores import drawn_slices, write_store

pytestmark = pytest.mark.slow


def test_a_decoder_learns_eight_slices_by_heart(tmp_path: Path, checkpoint: Path, small_sam: Sam) -> None:
    store = write_store(tmp_path / "store", small_sam, drawn_slices(8))
    settings = Settings(
        embedding_dir=store,
        val_embedding_dir=store,
        checkpoint=checkpoint,
        save_dir=tmp_path / "run",
        epochs=160,
        batch_size=8,
        lr=2e-3,
        scheduler="cosine",
        warmup_steps=10,
        val_every=160,
        allow_shared_cases=True,
        device="cpu",
    )
    outcome = train(settings, say=lambda line: None)
    assert outcome.start_dice is not None and outcome.start_dice < 0.5
    assert outcome.best_dice is not None and outcome.best_dice > 0.95


def test_a_decoder_gains_on_cases_it_has_not_seen(tmp_path: Path, checkpoint: Path, small_sam: Sam) -> None:
    write_store(tmp_path / "store" / "training", small_sam, drawn_slices(48))
    write_store(tmp_path / "store" / "validation", small_sam, drawn_slices(12, seed=7))
    settings = Settings(
        embedding_dir=tmp_path / "store",
        checkpoint=checkpoint,
        save_dir=tmp_path / "run",
        epochs=40,
        batch_size=8,
        lr=2e-3,
        scheduler="cosine",
        warmup_steps=10,
        val_every=20,
        train_scores=True,
        device="cpu",
    )
    outcome = train(settings, say=lambda line: None)
    assert outcome.start_dice is not None and outcome.best_dice is not None
    assert outcome.best_dice > outcome.start_dice + 0.4
