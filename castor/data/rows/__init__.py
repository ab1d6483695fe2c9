"""Good rows: fields, readings and schemas of a row, streams of good rows, pairs, mixtures, rows on disk."""
