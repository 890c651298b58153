"""`python -m samri_training.recipes.tiny.evaluate`."""

from samri_training.recipes.tiny.evaluate import main

main()
