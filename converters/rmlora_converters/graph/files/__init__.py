"""ONNX files and adapter files: reading, writing, and weights that are loaded only when needed."""
