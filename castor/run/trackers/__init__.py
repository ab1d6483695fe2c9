"""Where the figures of a run are tracked, beside the files in its folder."""
