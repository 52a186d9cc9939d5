"""Commands that make or convert training data."""
