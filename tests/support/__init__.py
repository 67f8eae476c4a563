"""What the tests lean on: servers, broken wires, and one way through both doors."""
