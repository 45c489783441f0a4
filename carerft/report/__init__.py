"""Reports: a pure function of run directories. The same directories give the same bytes.

`build` writes one self-contained HTML page, tables (Markdown, CSV, LaTeX) and figures (SVG, PNG). Data flows one way:
`runs` (files to dataclasses) -> `cells` (runs to rows, seeds to means and intervals) -> `columns`, `summary`,
`questions`, `tradeoff`, `reliability`, `curves` -> `tables` and `page`. Whatever a model wrote is hostile input.

Nothing is imported here: `text` and `runs` serve other verbs too, which need not wait for matplotlib.
"""
