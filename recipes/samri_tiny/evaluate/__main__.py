"""`python -m samri_tiny.evaluate`."""

from samri_tiny.evaluate import main

main()
