"""`python -m localwhisper_client`: the same as the command `localwhisper`."""

from localwhisper_client.cli import main

if __name__ == "__main__":
    main()
