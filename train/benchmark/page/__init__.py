"""The page of a benchmark, and how the board is read for it and for the tables."""
