"""What the services need from the world, each port under 60 lines; adapters implement them."""
