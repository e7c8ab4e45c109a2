"""The outside world: broker, disk, clock, machine. Each adapter turns foreign errors into ours."""
