"""Evaluation: probabilities and their calibration, unfamiliar images, near-duplicates, figures, the report."""
