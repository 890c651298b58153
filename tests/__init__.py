"""The tests: `python -m pytest`. Factories and helpers that several of them share are in `tests.support`."""
