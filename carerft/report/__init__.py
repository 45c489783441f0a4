"""Reports: a pure function of run directories. The same directories give the same bytes.

`build` writes one self-contained HTML page, tables (Markdown, CSV, LaTeX) and figures (SVG, PNG). Data flows one way:
`runs.reading` (files to dataclasses) -> `rows` (seeds to means and intervals) -> `columns`, `findings`, `questions`
-> `tables`, `figures/` -> `page`. Whatever a model wrote is hostile input.
"""
