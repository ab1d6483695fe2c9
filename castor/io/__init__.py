"""Files, checkpoints, errors, the terminal: what every room stands on."""
