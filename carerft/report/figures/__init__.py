"""Figures of a report, drawn with matplotlib, which takes a second to import: import them only to draw."""
