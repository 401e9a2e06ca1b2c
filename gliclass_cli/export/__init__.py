"""Turn trained encoders into ONNX graphs that need neither torch nor transformers."""
