"""Which backend a call tries next. Pure: no I/O."""
