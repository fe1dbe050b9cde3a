"""From rows to answers: comparisons, deltas, published numbers, significance, tables as text."""
