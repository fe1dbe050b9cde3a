"""One HTML file with everything that a store says: tables, charts, pairs, and where numbers are from."""
