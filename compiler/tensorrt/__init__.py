"""Models as TensorRT wants them: where Q/DQ pairs stand, what is float16, and how an engine is built."""
