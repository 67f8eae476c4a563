"""`make bench-scale`: how costs grow with keys, value size, processes, tags, bus messages and cluster nodes."""
