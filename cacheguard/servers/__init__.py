"""Several Redis servers: cluster, replicas, a ring of plain nodes, and the URLs that name them."""
