"""A model as ONNX, and how much of it the export keeps."""
