"""Writing and reading bundles: an OCI image layout in a folder, every file named by the manifest."""
