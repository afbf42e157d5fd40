"""A bar chart as SVG, small enough to be kept beside the text that it belongs to."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

_BAR, _GAP, _LABELS, _WIDTH, _NUMBERS = 16, 8, 270, 640, 60


def bars(title: str, values: Sequence[tuple[str, float]]) -> str:
    """Return a chart with a bar for each name and value."""
    longest = max(value for _, value in values)
    height = (len(values) + 1) * (_BAR + _GAP) + _GAP
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            'font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_GAP}" y="{_BAR + 2}" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (name, value) in enumerate(values, 1):
        top = number * (_BAR + _GAP) + _GAP
        width = value / longest * (_WIDTH - _LABELS - _NUMBERS)
        base = top + _BAR - 4
        lines += [
            f'<text x="{_LABELS - _GAP}" y="{base}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABELS}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="#4878a8"/>',
            f'<text x="{_LABELS + width + 4:.1f}" y="{base}">{value:.1f}</text>',
        ]
    return "\n".join([*lines, "</svg>\n"])
