"""`python -m localwhisper_server`."""

from localwhisper_server.cli import main

if __name__ == "__main__":
    main()
