"""`python -m samri_training.train` is `samri-train`: the form that torchrun starts."""

from samri_training.train._command import main

if __name__ == "__main__":
    main(prog_name="samri-train")
