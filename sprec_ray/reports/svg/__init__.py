"""Plots as inline SVG."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "plots": "Axes Bar Series line_plot",
        "heatmap": "heat_map",
        "labels": "Point",
    },
)
