"""Good rows: schemas, families, hygiene, mixtures, rows on disk."""
