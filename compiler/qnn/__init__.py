"""Models for Qualcomm's Hexagon NPU: quantized, and compiled into HTP context binaries."""
