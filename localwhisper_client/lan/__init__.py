"""The local servers: connections, checks of their answers, probes, discovery and Wake-on-LAN."""
