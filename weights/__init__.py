"""The weights that come with the project, trained on SYNTHETIC images alone."""
