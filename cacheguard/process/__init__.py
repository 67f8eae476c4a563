"""What one guard owns in a process: engines, connections, and what a fork does to them."""
