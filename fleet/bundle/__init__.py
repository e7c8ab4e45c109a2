"""What a bundle is: one compiled model for one target, as an OCI image layout of ModelPack media types."""
