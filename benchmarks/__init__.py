"""How accurate and how fast: `python -m benchmarks` measures it and prints a table."""
