"""The weights that ship with the project, trained only on SYNTHETIC images."""
