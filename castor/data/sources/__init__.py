"""Raw rows: files, URLs, the hub, own functions."""
