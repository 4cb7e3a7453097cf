"""Export: ONNX, SavedModel, LiteRT, and the live page."""
