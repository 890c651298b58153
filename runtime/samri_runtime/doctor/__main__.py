"""`python -m samri_runtime.doctor` is `samri-doctor`."""

from __future__ import annotations

from samri_runtime.doctor import main

if __name__ == "__main__":
    main(prog_name="samri-doctor")
