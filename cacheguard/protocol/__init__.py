"""What Redis knows of an entry: names, bytes, the scripts, and the same protocol without Redis."""
