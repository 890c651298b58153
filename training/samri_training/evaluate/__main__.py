"""`python -m samri_training.evaluate` is `samri-evaluate`."""

from __future__ import annotations

from samri_training.evaluate import main

if __name__ == "__main__":
    main(prog_name="samri-evaluate")
