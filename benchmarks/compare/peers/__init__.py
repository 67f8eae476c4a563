"""The other libraries, one small adapter each. An adapter calls what the library's own documentation shows."""
