"""From a PyTorch model or an ONNX graph to a verified bundle; only a graph that exists already needs no torch."""
