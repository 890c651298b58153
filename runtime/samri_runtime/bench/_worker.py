"""Measures one case in a process of its own: `python -m samri_runtime.bench._worker REQUEST RESULT`.

That is what a command-line user has: cold start and peak memory are those of the case alone, and a provider that
crashes doesn't take the other cases with it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import SamriError
from samri_runtime._embedding import Embedding
from samri_runtime._predictor import Predictor
from samri_runtime.bench._case import BenchCase
from samri_runtime.machine import current_rss, peak_rss


def main(request_path: str, result_path: str) -> None:
    """Measure the case in the request; the result is JSON, with the masks beside it as `.npz`."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    try:
        result = _measure(request, Path(result_path).with_suffix(".npz"))
    except (SamriError, ValueError, MemoryError) as error:
        result = {"error": " ".join((str(error) or type(error).__name__).split())}
    Path(result_path).write_text(json.dumps(result), encoding="utf-8")


def _measure(request: dict[str, Any], masks: Path) -> dict[str, Any]:
    case = BenchCase.from_json(request["case"])
    scene = np.load(request["scene"])
    image, boxes = scene["image"], scene["boxes"]
    predictor = Predictor(
        request["model"],
        case.provider,
        precision=case.precision,
        provider_options=case.options or None,
        threads=case.threads,
        static_shapes=case.static_shapes,
    )
    embedding, first_encode = _timed(lambda: predictor.encode(image))
    _masks(predictor, embedding, boxes[:1])
    # Wall-clock time, since the parent measured the start of this process.
    cold = time.time() - request["started"]
    encodes = [_timed(lambda: predictor.encode(image))[1] for _ in range(request["encodes"])]
    decodes: dict[str, list[float]] = {}
    for batch in request["batches"]:
        batch_boxes = boxes[np.arange(batch) % len(boxes)]
        _masks(predictor, embedding, batch_boxes)
        decodes[str(batch)] = [
            _timed(lambda each=batch_boxes: _masks(predictor, embedding, each))[1]  # type: ignore[misc]
            for _ in range(request["decodes"])
        ]
    memory = {"steady": current_rss(), "peak": peak_rss()}
    answer = predictor.predict(embedding, boxes=boxes)
    np.savez(masks, masks=np.packbits(answer.masks, axis=-1), low_res=answer.low_res_logits, scores=answer.scores)
    return {
        "ran": predictor.providers,
        "notes": [*predictor.notes, *_misplaced_nodes(case, request["model"])],
        "cold": cold,
        "first_encode": first_encode,
        "encodes": encodes,
        "decodes": decodes,
        **memory,
    }


def _misplaced_nodes(case: BenchCase, model: str) -> list[str]:
    """Lines on heavy nodes that ran on another provider; last, since it opens further sessions."""
    if case.provider == "cpu":
        return []
    from samri_runtime.doctor._trial import misplaced_graphs, trial_graphs, try_graph

    graphs = [graph for graph in trial_graphs(model, case.precision) if graph.runs_on(case.provider)]
    return misplaced_graphs([try_graph(graph, case.provider, case.options) for graph in graphs])


def _masks(predictor: Predictor, embedding: Embedding, boxes: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """The masks, which a prediction computes when they are first used."""
    return predictor.predict(embedding, boxes=boxes).masks


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main(*sys.argv[1:])
