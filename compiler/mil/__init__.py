"""ONNX to Core ML: a front-end for the MIL builder, and a numpy evaluator of what it saves."""
