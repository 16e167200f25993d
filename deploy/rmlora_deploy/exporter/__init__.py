"""From a PyTorch model to an ONNX bundle (needs torch, except for precision)."""
