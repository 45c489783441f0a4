"""The built-in world: people with facts, sums and word problems, and a tiny base model that half knows them.

It stands in for the web, the benchmarks and the pretrained model of a real run. README.md beside this file explains
each ingredient.
"""
