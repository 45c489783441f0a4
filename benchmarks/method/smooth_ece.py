"""Our smooth ECE against relplot's, the authors' own (Blasiok & Nakkiran 2023, arXiv 2309.12236).

    python -m venv relplot-venv && relplot-venv/bin/pip install relplot==1.0.3
    PYTHONPATH=. relplot-venv/bin/python benchmarks/method/smooth_ece.py

carerft does not depend on relplot; tests/test_calibration.py compares our smooth ECE with the values printed here. The
third column is smECE's definition, a sum over mirror images, at our width: the width is right if it equals ours.

relplot rounds the width to 1/1024 and confidences to a grid, which changes the value by up to 1e-3. One difference is
larger: its mirror image leaves out the grid's last point (`np.flip(values)[:-1]`), so that predictions of exactly 0 or
1 count half. Votes contain many of them; after moving them inwards by 1/1000, both agree.
"""

import numpy as np
import relplot

from carerft.metrics.calibration import smooth_ece


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Confidences (n,) and outcomes (n,) of models that are miscalibrated in different ways."""
    rng = np.random.default_rng(0)
    sure, luck = rng.random(1000), rng.random(1000)
    votes = np.round(sure * 8) / 8
    return {
        "overconfident: right with c^2": (sure, (luck < sure**2).astype(float)),
        "calibrated": (sure, (luck < sure).astype(float)),
        "underconfident: right with sqrt(c)": (sure, (luck < np.sqrt(sure)).astype(float)),
        "8 votes, right with c^2": (votes, (luck < votes**2).astype(float)),
        "the same, moved inwards by 1/1000": (votes.clip(0.001, 0.999), (luck < votes**2).astype(float)),
        "always sure, right 70%": (np.ones(1000), (luck < 0.7).astype(float)),
    }


def definition(confidence: np.ndarray, correct: np.ndarray, width: float) -> float:
    """The integral over [0, 1] of the absolute residuals, smoothed by a Gaussian that is reflected at both ends."""
    t = (np.arange(4000) + 0.5)[:, None] / 4000
    centres = [2 * m + sign * confidence for m in range(-4, 5) for sign in (1, -1)]
    kernel = sum(np.exp(-(((t - c) / width) ** 2) / 2) for c in centres) / (width * np.sqrt(2 * np.pi))
    return float(np.abs(kernel @ (correct - confidence) / len(confidence)).mean())


def main() -> None:
    print(f"{'':40}{'ours':>10}{'relplot':>10}{'definition':>12}")
    for name, (confidence, correct) in cases().items():
        value = float(smooth_ece(confidence, correct))
        other = relplot.smECE(confidence, correct)
        print(f"{name:40}{value:10.5f}{other:10.5f}{definition(confidence, correct, value):12.5f}")


if __name__ == "__main__":
    main()
