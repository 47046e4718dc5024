"""The model: engine, decoding rules, weights and devices."""
