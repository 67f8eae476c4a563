"""Where entries live: in the process, and in Redis."""
