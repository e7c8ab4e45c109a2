"""Inference for local applications: Open Inference Protocol over gRPC (Unix socket) and REST (loopback)."""
