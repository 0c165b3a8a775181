"""Trained models as files for other runtimes: LiteRT and ONNX."""
