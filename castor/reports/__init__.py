"""Pages, plots, tables and their wording."""
