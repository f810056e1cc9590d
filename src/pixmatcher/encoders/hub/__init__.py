"""Downloads models into the cache: weights from their URLs, files and ONNX encoders from the hub of models."""
