"""OpenVINO IR: converting, quantizing, writing and running it, for the CPU, Intel's NPU and the Myriad X."""
