"""The configuration: typed schemas, checks, and what identifies a run. Imports neither torch nor transformers."""
