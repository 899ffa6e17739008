"""Colours and defaults of the figures: transparent, thin, safe for colour-blind readers.

Ink and grid lines come from the page's style sheet, which knows light from dark; what is set here
has to read well on both.  Hues after Okabe & Ito (2008).
"""

from functools import cache
from typing import Any

import plotly.graph_objects as go

FIRST = "#d9661f"
SECOND = "#2b7fc3"
POSITIVE = "#0f9576"  # curvature λ > 0
NEGATIVE = "#b0529c"  # curvature λ ≤ 0
NEUTRAL = "#8a919e"
ALARM = "#c8372d"
RUNS = (SECOND, FIRST, POSITIVE, NEGATIVE, "#a98600", "#4aa3df", "#6b5bd2", "#7a5c3e")
"""One colour per run that is compared."""
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
Trace = dict[str, Any]
"""A trace as plotly's dict: a figure validates it once, when it is added."""
LINKED = "x"
"""Key in a figure's ``layout.meta`` of what its horizontal axis shows."""
ROW_HEIGHT = 220  # px, of a row of a figure of lines
HEAT_ROW = 17  # px per row of a heat map


def with_alpha(colour: str, alpha: float) -> str:
    """Write ``#rrggbb`` with an opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


@cache
def template() -> go.layout.Template:
    """Build the template of every figure."""
    axis: dict[str, Any] = dict(
        gridcolor=with_alpha(NEUTRAL, 0.22),
        zerolinecolor=with_alpha(NEUTRAL, 0.5),
        zerolinewidth=1,
        ticks="",
        linecolor="rgba(0,0,0,0)",
        automargin=True,
        title=dict(font=dict(size=12), standoff=10),
    )
    return go.layout.Template(
        layout=dict(
            modebar=dict(bgcolor="rgba(0,0,0,0)", color=NEUTRAL, activecolor=SECOND),
            font=dict(family=FONT, size=12, color=NEUTRAL),
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            margin=dict(l=8, r=8, t=28, b=8),
            xaxis=axis | dict(zeroline=False),
            yaxis=axis,
            hovermode="closest",
            hoverlabel=dict(bgcolor="#20252e", bordercolor="#20252e", font=dict(color="#f4f5f7")),
            legend=dict(orientation="h", x=0, y=1, xanchor="left", yanchor="bottom"),
        )
    )
