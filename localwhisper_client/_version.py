"""The version of the distribution, and how its extras are installed; for the server, too."""

__version__ = "0.1.0"


def install(extras: str, *options: str) -> str:
    """Return the command that adds extras. The package is not on PyPI, so it is installed from its clone."""
    return " ".join(("pip install", *options, f"'.[{extras}]' in the clone of localwhisper"))
