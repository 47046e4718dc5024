"""Bytes of any container to 16 kHz samples, decoded in confined processes."""
