"""The version of the distribution. The server reads it from here: every install has the client."""

__version__ = "0.1.0"
