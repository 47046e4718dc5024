"""The server as a systemd service."""
