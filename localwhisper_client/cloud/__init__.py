"""The paid fallback: what it can give, request adaptation, prices, ledger and budget."""
