"""What keeps the three scripts short: the command line, and one room for each thing that a user does.

training/    a run and its files, augmentation, batches, initial weights
evaluation/  calibration, out-of-distribution detection, figures, the report
prediction/  images of your own
export/      other formats, the live page
"""
