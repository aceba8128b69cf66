"""Formulas people quote, each with its source, to be set beside what is traced."""
