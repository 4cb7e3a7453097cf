"""Measurements of accuracy, speed, memory and robustness. `python -m benchmarks` prints a table."""
