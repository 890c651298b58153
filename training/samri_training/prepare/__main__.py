"""`python -m samri_training.prepare` is `samri-prepare`."""

from __future__ import annotations

from samri_training.prepare import main

if __name__ == "__main__":
    main(prog_name="samri-prepare")
