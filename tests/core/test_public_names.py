from __future__ import annotations

import builtins

import pytest

import samri
import samri.errors
import samri_runtime


def test_the_public_names_are_these() -> None:
    assert set(samri.__all__) == {
        "SamriError",
        "Session",
        "__version__",
        "load_model",
        "read_scan",
        "segment",
        "segment_volume",
    }
    assert set(samri_runtime.__all__) == {
        "BundleError",
        "Embedding",
        "InputError",
        "MissingDependencyError",
        "Prediction",
        "Predictor",
        "Prompt",
        "PromptError",
        "ProviderError",
        "SamPredictor",
        "SamriError",
    }
    for module in (samri, samri_runtime):
        assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize(
    "error",
    [value for value in vars(samri.errors).values() if isinstance(value, type) and value is not samri.SamriError],
)
def test_every_error_is_a_samri_error_and_a_builtin_a_caller_would_expect(error: type[Exception]) -> None:
    assert issubclass(error, samri.SamriError)
    parents = [base for base in error.__bases__ if base is not samri.SamriError]
    assert len(parents) == 1
    assert hasattr(builtins, parents[0].__name__)
