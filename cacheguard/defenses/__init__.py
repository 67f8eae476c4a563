"""One file per way in which a cached system dies; pure rules, no waiting."""
