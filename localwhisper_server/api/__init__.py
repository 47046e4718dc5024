"""HTTP: the only folder that imports the web framework."""
