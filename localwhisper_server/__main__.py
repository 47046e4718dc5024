"""`python -m localwhisper_server`."""

from localwhisper_server.entry import main

if __name__ == "__main__":
    main()
