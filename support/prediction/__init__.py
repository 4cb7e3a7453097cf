"""Prediction: a trained model, NumPy inference, finding the hand or the face, heatmaps."""
