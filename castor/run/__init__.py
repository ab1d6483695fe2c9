"""A run: its folder, its stages, its resolved plan."""
