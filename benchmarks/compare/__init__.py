"""`make bench`: every row of the table of targets beside the other libraries, in turns, through the public API of each."""
