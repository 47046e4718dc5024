"""One upload to one transcript: decode, cut, queue, batch, join."""
