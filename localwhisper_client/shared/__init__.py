"""Pure tables that the server imports as well: languages, LAN address ranges, file endings."""
