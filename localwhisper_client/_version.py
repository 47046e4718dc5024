"""The version of the whole distribution, in the package that every install has."""

__version__ = "0.1.0"
