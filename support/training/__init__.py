"""Training: a run and its folder, checkpoints, batches, augmentation, initial weights, several devices."""
