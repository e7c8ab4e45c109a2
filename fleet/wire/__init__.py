"""What travels between server and devices: topics, messages, and how they become bytes."""
