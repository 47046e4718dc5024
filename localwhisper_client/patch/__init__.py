"""`install()` and `localwhisper run`: an unchanged program's speech-to-text goes to the LAN server."""
