"""What a data set holds: checks, statistics, leaks, splits."""
