"""Exporting causal language models through ONNX Runtime GenAI's model builder, or torch.onnx."""
