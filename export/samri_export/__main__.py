"""`python -m samri_export` is `samri-export`."""

from __future__ import annotations

from samri_export.command import main

if __name__ == "__main__":
    main(prog_name="samri-export")
