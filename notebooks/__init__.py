"""The three lessons as Jupyter notebooks, made from the scripts."""
