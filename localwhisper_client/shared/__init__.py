"""What the server needs of the client's package: tables, and how to install an extra."""


def install_command(extras: str, *options: str) -> str:
    """Return the command that adds extras. The package is not on PyPI, so it is installed from its clone."""
    return " ".join(("pip install", *options, f"'.[{extras}]' in the clone of localwhisper"))
