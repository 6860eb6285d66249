"""Deployment: export to ONNX, OpenVINO or a folded checkpoint, and run what was exported."""
