"""Which backend a call tries next. Pure: no I/O; the clock and random numbers are arguments."""
