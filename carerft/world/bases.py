"""Where the tiny base models are: number 0 comes with the package, any other is built once and cached."""

import os
from pathlib import Path

from carerft.processes import made_once
from carerft.world.facts import DEFAULT_SETTINGS

SHIPPED = Path(__file__).parent / "base"


def cache_directory() -> Path:
    """`$CARERFT_CACHE`, else `~/.cache/carerft`."""
    return Path(os.environ.get("CARERFT_CACHE") or Path.home() / ".cache" / "carerft")


def base_place(seed: int, confidence: bool = False) -> Path:
    """Where base model `seed` lies, or would.

    confidence: of the base that states a confidence after each answer. All but base 0 without them lie in
    `cache_directory()/bases/<hash of the world>/`, as `seed=<n>` or `confidence,seed=<n>`.
    """
    if seed == 0 and not confidence:
        return SHIPPED
    name = f"{'confidence,' * confidence}seed={seed}"
    return cache_directory() / "bases" / DEFAULT_SETTINGS.content_hash() / name


def base_directory(seed: int, confidence: bool = False) -> Path:
    """The Hugging Face directory of base model `seed`, built if it is absent (a quarter of an hour on one core)."""
    directory = base_place(seed, confidence)

    def build() -> None:
        from carerft.world.pretraining import build_base  # torch and transformers, which take seconds to import

        build_base(seed, directory, confidence=confidence)

    made_once(directory / "provenance.json", directory.with_suffix(".lock"), build)
    return directory
