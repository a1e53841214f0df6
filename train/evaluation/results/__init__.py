"""Results: outcomes, intervals, records, tables and pictures."""
