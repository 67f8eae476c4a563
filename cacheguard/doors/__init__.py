"""What users hold, in both colours: decorated functions, guarded writes, Bloom filters."""
