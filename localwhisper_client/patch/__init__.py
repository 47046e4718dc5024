"""Patches the SDK's clients, so that a program runs unchanged."""
