"""Deployment: export to ONNX, OpenVINO, LiteRT or a folded checkpoint, and run what was exported."""
