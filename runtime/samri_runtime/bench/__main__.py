"""`python -m samri_runtime.bench` is `samri-bench`."""

from __future__ import annotations

from samri_runtime.bench._command import main

if __name__ == "__main__":
    main(prog_name="samri-bench")
