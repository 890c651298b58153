"""Embeddings of the next slices, computed while the decoder answers on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from samri_runtime._embedding import Embedding


class EmbeddingsAhead:
    """Slices' embeddings, encoded by one thread in the background, as a context.

    No more embeddings are held than were announced, so that memory does not grow with the number of slices.

    Args:
        encode: Gives the embedding of one slice by its number, from the cache or from the encoder.
    """

    def __init__(self, encode: Callable[[int], Embedding]) -> None:
        self._encode = encode
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="samri-encoder")
        self._coming: dict[int, Future[Embedding]] = {}

    def __enter__(self) -> EmbeddingsAhead:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def get(self, number: int, following: Iterable[int] = ()) -> Embedding:
        """The embedding of one slice; those that follow are begun, and any others are given up.

        Raises:
            SamriError: As `Predictor.encode`.
        """
        wanted = [number, *following]
        for given_up in self._coming.keys() - set(wanted):
            self._coming.pop(given_up).cancel()
        for each in wanted:
            if each not in self._coming:
                self._coming[each] = self._worker.submit(self._encode, each)
        return self._coming.pop(number).result()
