"""Adapters and ONNX graphs (no torch): finding a module's weight in any export, and changing it there."""
