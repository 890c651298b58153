"""`python -m samri_runtime.run` is `samri-run`."""

from __future__ import annotations

from samri_runtime.run import main

if __name__ == "__main__":
    main(prog_name="samri-run")
