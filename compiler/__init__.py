"""ONNX in, bundle out: quantizes and packages a model for a target, and measures what it did."""
