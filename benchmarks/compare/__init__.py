"""`make bench`: every row of the table of targets beside the other libraries, in turns, by the public API of each."""
