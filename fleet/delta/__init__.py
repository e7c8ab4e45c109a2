"""The difference between two versions of a file, aware of the weight tensors inside. No I/O."""
