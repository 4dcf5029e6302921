"""Export of a model to ONNX for services, with a measurement of how well each export agrees with the model."""
