"""Numbers with their intervals. Imports none of the other rooms."""
