"""Plots as SVG, made by hand: text and lines take the reader's colour, so they read in light and dark."""

import math
from xml.sax.saxutils import escape

STYLE = """<style>
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .title { font-weight: 600; font-size: 15px; }
  .small { font-size: 11px; fill: #57606a; }
  .grid { stroke: #8c959f; stroke-opacity: .35; stroke-width: 1; }
  .axis { stroke: #57606a; stroke-width: 1; }
  .bar { fill: #8c959f; } .ours { fill: #2f81f7; }
  .range { stroke: #57606a; stroke-width: 1.5; }
  .line0 { stroke: #2f81f7; fill: none; stroke-width: 2; } .dot0 { fill: #2f81f7; }
  .line1 { stroke: #db6d28; fill: none; stroke-width: 2; stroke-dasharray: 6 4; } .dot1 { fill: #db6d28; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9da7b3; }
    .axis, .range { stroke: #9da7b3; }
  }
</style>"""


def steps(most, about=5):
    """Round numbers from 0 to at least `most`."""
    most = most or 1
    raw = most / about
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw)
    return [n * step for n in range(math.ceil(most / step - 1e-9) + 1)]


def short(value):
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def svg(width, height, title, body):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{escape(title)}">\n{STYLE}\n'
            f'<text class="title" x="16" y="26">{escape(title)}</text>\n' + "\n".join(body) + "\n</svg>\n")


def bars(title, unit, rows, ours="belfry"):
    """Horizontal bars. `rows`: name, middle, least, most. The range is drawn over each bar."""
    left, top, high, width = 130, 48, 34, 720
    ticks = steps(max(row[3] for row in rows))
    scale = (width - left - 110) / ticks[-1]
    bottom = top + high * len(rows)
    body = []
    for tick in ticks:
        x = left + tick * scale
        body.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        body.append(f'<text class="small" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{short(tick)}</text>')
    for n, (name, middle, least, most) in enumerate(rows):
        y = top + n * high
        kind = "ours" if name.startswith(ours) else "bar"
        body.append(f'<text x="{left - 10}" y="{y + 22}" text-anchor="end">{escape(name)}</text>')
        body.append(f'<rect class="{kind}" x="{left}" y="{y + 7}" width="{max(middle * scale, 1):.1f}" height="20" rx="2"/>')
        a, b = left + least * scale, left + most * scale
        body.append(f'<path class="range" d="M{a:.1f} {y + 17}H{b:.1f}M{a:.1f} {y + 12}v10M{b:.1f} {y + 12}v10"/>')
        body.append(f'<text x="{max(b, left + middle * scale) + 8:.1f}" y="{y + 22}">{short(middle)}</text>')
    body.append(f'<line class="axis" x1="{left}" y1="{top}" x2="{left}" y2="{bottom}"/>')
    body.append(f'<text class="small" x="{left}" y="{bottom + 34}">{escape(unit)}; the whisker is the range of all runs</text>')
    return svg(width, bottom + 46, title, body)


def lines(title, x_name, y_name, series):
    """Lines over a common axis. `series`: name to a list of points."""
    left, top, right, bottom, width = 80, 48, 700, 360, 720
    points = [point for line in series.values() for point in line]
    xs, ys = steps(max(x for x, _ in points)), steps(max(y for _, y in points))

    def place(x, y):
        return (left + x / xs[-1] * (right - left), bottom - y / ys[-1] * (bottom - top))
    body = []
    for tick in xs:
        x, _ = place(tick, 0)
        body.append(f'<text class="small" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{short(tick)}</text>')
    for tick in ys:
        _, y = place(0, tick)
        body.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        body.append(f'<text class="small" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for n, (name, line) in enumerate(series.items()):
        placed = [place(*point) for point in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        body.append(f'<path class="line{n}" d="M{path}"/>')
        body += [f'<circle class="dot{n}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in placed]
        y = top + 14 + 20 * n
        body.append(f'<path class="line{n}" d="M{left + 14} {y - 4}h28"/>')
        body.append(f'<text x="{left + 50}" y="{y}">{escape(name)}</text>')
    body.append(f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    body.append(f'<text class="small" x="{(left + right) / 2}" y="{bottom + 38}" text-anchor="middle">{escape(x_name)}</text>')
    body.append(f'<text class="small" x="16" y="{top - 8}">{escape(y_name)}</text>')
    return svg(width, bottom + 52, title, body)
