"""What keeps the three scripts short: the command line, a run and its files, augmentation, calibration, the report."""
