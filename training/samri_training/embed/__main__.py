"""`python -m samri_training.embed`, which is also how torchrun starts it."""

from __future__ import annotations

from samri_training.embed import main

if __name__ == "__main__":
    main(prog_name="samri-embed")
