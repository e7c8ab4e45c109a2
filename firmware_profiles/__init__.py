"""What each compile target can run, as data (`targets/*.toml`) with one schema."""
