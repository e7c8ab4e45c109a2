"""TensorFlow Lite files: reading, checking, rewriting, quantizing and running them."""
