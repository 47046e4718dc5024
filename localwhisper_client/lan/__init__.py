"""The servers on the LAN: connections, what their answers mean, health, discovery, wake."""
