"""The ratios of a benchmark as a picture."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from ..errors import UcmError
from .measure import Finding

__all__ = ["plot_ratios"]


def plot_ratios(findings: Sequence[Finding], target: Path) -> None:
    """Draw a bar for each ratio, with the range of its rounds and its goal.

    Raises
    ------
    UcmError
        matplotlib is not installed, or there is no ratio to draw.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
        backend = importlib.import_module("matplotlib.backends.backend_agg")
    except ImportError:
        raise UcmError("--plot needs matplotlib (pip install matplotlib)") from None
    drawn = [(one, one.ratio) for one in findings if one.ratio is not None]
    if not drawn:
        raise UcmError("--plot: there is no ratio to draw; is there a C program to compare with?")
    figure = figures.Figure(figsize=(9, 1.2 + 0.4 * len(drawn)), layout="constrained")
    backend.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rows = range(len(drawn))
    middles = [ratio.median for _, ratio in drawn]
    spans = [[ratio.median - ratio.low for _, ratio in drawn], [ratio.high - ratio.median for _, ratio in drawn]]
    axes.barh(rows, middles, xerr=spans, capsize=3, color="tab:blue")
    for row, (one, _) in enumerate(drawn):
        if one.goal is not None:
            axes.plot([one.goal[1]] * 2, [row - 0.4, row + 0.4], color="black", linestyle="--")
    axes.set_yticks(rows, [f"{one.case}: {one.what} / {one.reference}" for one, _ in drawn])
    axes.invert_yaxis()
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_xlabel("ratio: median of the rounds, smallest to largest; dashed: goal")
    figure.savefig(target, dpi=120)
