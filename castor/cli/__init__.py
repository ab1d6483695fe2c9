"""The castor command, on top of everything."""
