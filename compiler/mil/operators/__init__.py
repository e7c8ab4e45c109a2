"""Converters of ONNX operators to MIL, one module per kind; a new operator is one more function."""
