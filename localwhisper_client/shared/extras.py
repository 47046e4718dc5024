"""How the optional parts of the distribution are installed."""


def install_command(extras: str, *options: str) -> str:
    """Return the command that adds extras. The package is not on PyPI, so it is installed from its clone."""
    return " ".join(("pip install", *options, f"'.[{extras}]' in the clone of localwhisper"))
