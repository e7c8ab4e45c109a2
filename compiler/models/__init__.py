"""ONNX models: what may come in, the one form that they are brought into, and looking around in them."""
