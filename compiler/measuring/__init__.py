"""What a compiled model loses and takes, against float."""
