"""Plots of the report: SVG by matplotlib, with the colors and the font of the page."""

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from html import escape
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.printable import printable
from vocabgraft.storage.artifacts import digest_of, file_sha256
from vocabgraft.storage.atomic import replace_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholders that occur nowhere else, replaced in the SVG by CSS variables that the page defines for light and dark.
COLOURS = {
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "base": "#010206",
    "resized": "#010207",
    "trained": "#010208",
    "control": "#010209",
    "page": "#01020a",
}
STYLES = Path(__file__).parent / "templates" / "report.css"
# In CSS pixels: for a wide page, and for a phone of 390 pixels, without margins.
WIDTHS = {"wide": 720, "narrow": 340}
FONT_SIZE = 11
ROW_HEIGHT = {"wide": 46, "narrow": 58}
NAMES_WIDTH = {"wide": 200, "narrow": 4}
LABELLED_TOKENS = {"wide": 16, "narrow": 7}
LETTER_WIDTH = 0.6 * FONT_SIZE
# The loss is smoothed, because each step has one batch and datasets alternate.
SMOOTHED_OVER = 0.1
DASHES = ("--", ":", "-.")


def draw(name: str, data: Mapping[str, Any]) -> str:
    """A plot for a wide and one for a narrow page; the style sheet shows one of them.

    Args:
        name: one of `PLOTS`.
        data: arguments of its function, with `label` and `description` as text alternatives.
    """
    with _style():
        return "\n".join(
            f'<div class="plot {width}">{_inline(PLOTS[name](data, width), f"{name}-{width}", data)}</div>'
            for width in WIDTHS
        )


class PlotFolder:
    """A cache of plots by their data: drawing takes most of a report's time, and an idle run changes no plot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[str] = set()

    def __call__(self, name: str, data: Mapping[str, Any]) -> str:
        """The plot of this data, from the folder if it is there."""
        made_by = [file_sha256(Path(__file__)), version("matplotlib")]
        path = self.folder / f"{name}-{digest_of([name, data, made_by])[:16]}.svg"
        self.used.add(path.name)
        if not path.is_file():
            replace_text(path, draw(name, data))
        return path.read_text(encoding="utf-8")

    def forget_others(self) -> None:
        """Delete plots that the page no longer shows."""
        for path in self.folder.glob("*.*"):
            if path.name not in self.used:
                path.unlink()


def standalone_plots(folder: Path) -> dict[str, str]:
    """The plots in the folder of a `PlotFolder` as SVG documents by name: the wide form, in the page's light colors."""
    colours = dict(reversed(re.findall(r"--([\w-]+): ([^;]+);", STYLES.read_text(encoding="utf-8"))))
    values = colours | {"sans": "sans-serif"}
    found = {}
    for path in sorted(folder.glob("*.svg")):
        svg = path.read_text(encoding="utf-8").partition("</svg>")[0] + "</svg>"
        svg = re.sub(r"var\(--([\w-]+)\)", lambda name: values[name[1]], svg[svg.index("<svg") :])
        found[path.name.rpartition("-")[0]] = svg
    return found


def _gains(data: Mapping[str, Any], width: str) -> str:
    """One row per metric: base, resized and trained on one axis, with the gain's interval around trained."""
    rows = data["rows"]
    figure, axes = _figure(width, ROW_HEIGHT[width] * len(rows) + 44, left=NAMES_WIDTH[width])
    for place, row in enumerate(rows):
        y = -place
        axes.plot([row["base"], row["merged"]], [y, y], color=COLOURS["line"], linewidth=2, zorder=1)
        if row["low"] is not None:
            ends = [row["base"] + row["low"], row["base"] + row["high"]]
            axes.plot(ends, [y, y], color=COLOURS["trained"], linewidth=9, alpha=0.28, solid_capstyle="butt", zorder=2)
        for model, (marker, size) in MARKERS.items():
            if row.get(model) is not None:
                axes.plot(row[model], y, marker, markersize=size, zorder=4, **_marker(model))
        gain = f"{row['gain']:+.1f}".replace("-", "\N{MINUS SIGN}")
        right = max(value for model in MARKERS if (value := row.get(model)) is not None)
        right = max(right, row["base"] + (row["high"] or 0) if row["high"] is not None else right)
        axes.annotate(gain, (right, y), (9, 0), textcoords="offset points", va="center", weight="bold")
    _name_rows(axes, [(row["name"], row["detail"]) for row in rows], width)
    low, high = _span(rows)
    axes.set_xlim(low, high)
    axes.set_xlabel("percent, more is better")
    return _svg(figure)


MARKERS = {"base": ("o", 7.0), "resized": ("D", 5.5), "control": ("s", 5.5), "merged": ("o", 9.0)}


def _marker(model: str) -> dict[str, Any]:
    colour = COLOURS["trained" if model == "merged" else model]
    hollow = model in ("base", "control")
    face = COLOURS["page"] if hollow else colour
    edge = colour if hollow else COLOURS["page"]
    return {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": 1.8 if hollow else 1.2}


def _span(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    values = [row[model] for row in rows for model in MARKERS if row.get(model) is not None]
    values += [row["base"] + row[end] for row in rows for end in ("low", "high") if row[end] is not None]
    room = max(4.0, 0.08 * (max(values) - min(values)))
    return min(values) - room, max(values) + 2.2 * room


def _drift(data: Mapping[str, Any], width: str) -> str:
    """One row per group of texts: drift as mean, 99th percentile and the ten texts that moved most."""
    rows = data["rows"]
    figure, axes = _figure(width, ROW_HEIGHT[width] * len(rows) + 44, left=NAMES_WIDTH[width])
    for place, row in enumerate(rows):
        y = -place
        axes.plot([0, max(row["p99"], *row["worst"], 0)], [y, y], color=COLOURS["line"], linewidth=2, zorder=1)
        axes.plot(row["worst"], [y] * len(row["worst"]), "o", markersize=5, zorder=2, **_marker("base"))
        axes.plot(row["p99"], y, "|", markersize=17, markeredgewidth=2.5, color=COLOURS["resized"], zorder=3)
        axes.plot(row["mean"], y, "o", markersize=9, zorder=4, **_marker("merged"))
    _name_rows(axes, [(row["name"], row["detail"]) for row in rows], width)
    most = max(max(row["p99"], row["mean"], *row["worst"]) for row in rows)
    axes.set_xlim(-0.04 * max(most, 0.01), 1.08 * max(most, 0.01))
    axes.set_xlabel("1 \N{MINUS SIGN} cosine to the base's vector; 0: unchanged")
    return _svg(figure)


def _token_map(data: Mapping[str, Any], width: str) -> str:
    """New rows among a sample of old ones, on their first two principal components."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    figure, axes = _figure(width, 460 if width == "wide" else 340, left=22, bottom=24)
    # One path of many dots, each a line of zero length with round ends, takes a tenth of the bytes of markers.
    dots = [(x + shift, y) for x, y in data["old"] for shift in (0, 1e-6)]
    outline = Outline(dots, [Outline.MOVETO, Outline.LINETO] * len(data["old"]))
    outline.should_simplify = False
    style = {"linewidth": 3.2, "edgecolor": COLOURS["base"], "facecolor": "none", "alpha": 0.45, "capstyle": "round"}
    axes.add_patch(PathPatch(outline, zorder=1, **style))
    axes.autoscale_view()
    for place, (x, y, _) in enumerate(data["new"]):
        marker = _marker("merged") | {"markeredgewidth": 0.8}
        axes.plot(x, y, "o", markersize=6, zorder=3, gid=f"token-{place}", **marker)
    _name_some(axes, data["new"], LABELLED_TOKENS[width])
    first, second = (f"{100 * share:.0f} %" for share in data["explained"])
    axes.set_xlabel(f"first principal component ({first} of the variance)")
    axes.set_ylabel(f"second ({second})")
    axes.tick_params(labelbottom=False, labelleft=False, length=0)
    svg = _svg(figure)
    for place, (_, _, token) in enumerate(data["new"]):
        svg = svg.replace(f'<g id="token-{place}">', f'<g id="token-{place}"><title>{escape(_drawable(token))}</title>')
    return svg


def _name_some(axes: "Axes", tokens: Sequence[Sequence[Any]], most: int) -> None:
    """Label the outermost tokens, on the outer side of their dots, and skip labels that would overlap."""
    to_pixels = axes.transData.transform
    middle = to_pixels([(x, y) for x, y, _ in tokens]).mean(axis=0)
    left, _, right, _ = axes.get_window_extent().extents
    placed: list[tuple[float, float, float]] = []
    order = sorted(tokens, key=lambda token: -abs(to_pixels(token[:2]) - middle).sum())
    for x, y, token in order:
        name = _shortened(token, 22)
        across, up = to_pixels((x, y))
        length = LETTER_WIDTH * len(name) + 6
        rightwards = left + length > across or (across > middle[0] and across + length < right)
        start = across if rightwards else across - length
        if any(start < end and begin < start + length and abs(up - v) < 1.3 * FONT_SIZE for begin, end, v in placed):
            continue
        placed.append((start, start + length, up))
        text = axes.annotate(name, (x, y), (6 if rightwards else -6, 0), textcoords="offset points")
        text.set(va="center", ha="left" if rightwards else "right", zorder=5)
        if len(placed) == most:
            return


def _curve(data: Mapping[str, Any], width: str) -> str:
    """Losses over the steps: each step's loss faint, its running mean and the validation losses in full color."""
    figure, axes = _figure(width, 320 if width == "wide" else 280, left=48)
    steps, losses = data["train"]["steps"], data["train"]["losses"]
    axes.plot(steps, losses, color=COLOURS["trained"], alpha=0.35, linewidth=1)
    window = max(1, round(SMOOTHED_OVER * len(losses)))
    axes.plot(steps, _running_mean(losses, window), color=COLOURS["trained"], linewidth=2.2)
    validated: dict[str, Any] = {"color": COLOURS["resized"], "marker": ".", "linewidth": 1.8}
    for place, line in enumerate(data["validation"].values()):
        axes.plot(line["steps"], line["losses"], linestyle=DASHES[place % len(DASHES)], **validated)
    _name_phases(axes, data["phases"])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, less is better")
    axes.set_ylim(bottom=min(0, *losses))
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.6)
    return _svg(figure)


def _name_phases(axes: "Axes", phases: Sequence[tuple[int, int]]) -> None:
    where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    for phase, step in phases if len(phases) > 1 else ():
        axes.axvline(step, color=COLOURS["line"], linewidth=1, zorder=0)
        axes.annotate(f"phase {phase}", (step, 1), (4, -12), color=COLOURS["muted"], **where)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    means = []
    for place in range(len(values)):
        near = values[max(0, place - window + 1) : place + 1]
        means.append(sum(near) / len(near))
    return means


PLOTS: "dict[str, Callable[[Mapping[str, Any], str], str]]" = {
    "gains": _gains,
    "drift": _drift,
    "token_map": _token_map,
    "curve": _curve,
}


@contextmanager
def _style() -> "Iterator[None]":
    import matplotlib as mpl

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "vocabgraft",
        "path.simplify": False,
        "text.parse_math": False,
        "font.size": FONT_SIZE,
        "axes.labelsize": FONT_SIZE,
        "legend.fontsize": FONT_SIZE,
        "xtick.labelsize": FONT_SIZE,
        "ytick.labelsize": FONT_SIZE,
        "text.color": COLOURS["ink"],
        "axes.labelcolor": COLOURS["muted"],
        "xtick.color": COLOURS["line"],
        "ytick.color": COLOURS["line"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.labelcolor": COLOURS["muted"],
        "axes.edgecolor": COLOURS["line"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "axes.axisbelow": True,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The reader's browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _figure(width: str, height: float, left: float, bottom: float = 42) -> "tuple[Figure, Axes]":
    """A figure with one pair of axes; margins are in pixels, because the reader's font sets the size of texts."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    full = WIDTHS[width]
    figure = Figure(figsize=(full / 72, height / 72), dpi=72)
    axes = figure.add_axes((left / full, bottom / height, 1 - (left + 8) / full, 1 - (bottom + 6) / height))
    axes.xaxis.set_major_locator(MaxNLocator(8 if width == "wide" else 5))
    return figure, axes


def _name_rows(axes: "Axes", names: Sequence[tuple[str, str]], width: str) -> None:
    """Name rows from top to bottom: beside the axis if there is room, otherwise above each row."""
    axes.set_ylim(-len(names) + (0.45 if width == "wide" else 0.75), 0.6 if width == "wide" else 0.8)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=COLOURS["line"], linewidth=0.6)
    axes.set_yticks([])
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    for place, (name, detail) in enumerate(names):
        left, up = (-NAMES_WIDTH[width], 2) if width == "wide" else (0, 25)
        axes.annotate(_shortened(name, 36), (0, -place), (left, up), weight="bold", **where)
        axes.annotate(_shortened(detail, 42), (0, -place), (left, up - 14), color=COLOURS["muted"], **where)


def _shortened(text: str, longest: int) -> str:
    text = _drawable(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def _drawable(text: str) -> str:
    """A text on one line, as a plot can draw it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in printable(text))


def _svg(figure: "Figure") -> str:
    stream = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return stream.getvalue()


def _inline(svg: str, prefix: str, data: Mapping[str, Any]) -> str:
    """Turn an SVG document into a part of the page: no prologue or global styles, unique ids, the page's colors."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "var(--sans)", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None, "matplotlib gives every SVG its viewBox"
    head = (
        f'<svg {view.group()} role="img" aria-label="{escape(data["label"])}" aria-describedby="{prefix}-description" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<desc id="{prefix}-description">{escape(data["description"])}</desc>'
    )
    return re.sub(r"[ \t]*\n[ \t]*", "\n", head + svg[svg.index(">") + 1 :])
