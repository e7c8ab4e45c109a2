"""Models as AMD's Ryzen AI NPU wants them: symmetric integers, with power-of-two or float scales."""
