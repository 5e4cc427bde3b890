"""A line as small as a word, as the points of an SVG."""

from __future__ import annotations

from collections.abc import Sequence

#: Its size, and the room around it that half of its stroke takes.
WIDTH, HEIGHT, MARGIN = 120, 28, 3


def points(values: Sequence[float]) -> str:
    """Return the points of a line through values, in steps, as SVG writes them; one value is a level line.

    Examples
    --------
    >>> points([1.0, 2.0])
    '3.0,25.0 117.0,25.0 117.0,3.0'
    """
    if len(values) == 1:
        values = [values[0], values[0]]
    low, high = min(values), max(values)
    if high - low == float("inf"):  # of huge scores
        values = [value / 2 for value in values]
        low, high = min(values), max(values)
    scale = high - low or 1.0
    step = (WIDTH - 2 * MARGIN) / (len(values) - 1)
    places = [
        (
            MARGIN + step * place,
            HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (0.5 if high == low else (value - low) / scale),
        )
        for place, value in enumerate(values)
    ]
    drawn = [places[0]]
    for x, y in places[1:]:
        if y != drawn[-1][1]:  # it goes level, and then up
            drawn.append((x, drawn[-1][1]))
            drawn.append((x, y))
    if drawn[-1][0] != places[-1][0]:
        drawn.append(places[-1])
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
