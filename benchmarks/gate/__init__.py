"""`make bench-gate`: what a call costs in steps of the interpreter, against committed figures. No clocks."""
