"""Export of a model to ONNX for services, and how much of the model each export keeps."""
