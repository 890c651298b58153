"""SAMRI's training: slices and masks in, a fine-tuned decoder and the proof of its gain out."""
