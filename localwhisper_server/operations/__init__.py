"""What keeps a server running for months: logs, metrics, watchdog, announcements."""
