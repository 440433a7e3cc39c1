"""Draw docs/_static/migration.svg: who says what to whom when a domain moves. Run: python tools/migration_figure.py."""

from __future__ import annotations

from html import escape
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "docs/_static/migration.svg"
LANES = {
    "agent": (110, "agent", "in the guest"),
    "one": (310, "mbrokerd", "on node1"),
    "virt1": (490, "libvirt", "of node1"),
    "virt2": (670, "libvirt", "of node2"),
    "two": (850, "mbrokerd", "on node2"),
}
TOP, STEP, LEFT = 84, 30, 30
FONT = 'font-family="DejaVu Sans, Verdana, sans-serif"'
WORDS = 'text-anchor="middle" font-size="11.5" fill="#22577a" stroke="#fff" stroke-width="3" paint-order="stroke"'
TIP = (
    '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9"'
    ' markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 10 5 0 10z" fill="#22577a"/></marker>'
)

Row = tuple[str, str, str] | str  # from, to, words; or a remark over all lanes
ROWS: tuple[Row, ...] = (
    ("agent", "one", "messages, acknowledged"),
    "mbroker migrate web1 node2",
    ("one", "two", "may it come?  yes"),
    ("one", "virt1", "migrate"),
    ("virt1", "virt2", "memory, while the guest runs"),
    "the guest pauses",
    ("virt1", "one", "it leaves"),
    ("one", "two", "its sessions, with what was not acknowledged"),
    ("virt2", "two", "it runs here"),
    ("two", "agent", "it is me now: this I have of you"),
    ("agent", "two", "the rest, from there on: nothing lost, nothing twice"),
    ("two", "one", "I have its sessions; it runs here"),
)


def figure() -> str:
    """Return the figure as SVG."""
    height = TOP + STEP * len(ROWS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {height}" font-size="13" {FONT} role="img">',
        "  <title>A domain moves from node1 to node2, and its sessions with it</title>",
        f"  <defs>{TIP}</defs>",
        f'  <rect width="960" height="{height}" fill="#fff"/>',
    ]
    for x, name, where in LANES.values():
        parts += [
            f'  <rect x="{x - 75}" y="10" width="150" height="42" rx="5" fill="#dcedf5" stroke="#22577a"/>',
            f'  <text x="{x}" y="28" text-anchor="middle" font-weight="bold">{name}</text>',
            f'  <text x="{x}" y="44" text-anchor="middle" font-size="11">{where}</text>',
            f'  <path d="M{x} 52V{height - 10}" stroke="#8b98a5" stroke-dasharray="3 4"/>',
        ]
    for number, row in enumerate(ROWS):
        parts += _row(row, TOP + STEP * number)
    return "\n".join([*parts, "</svg>", ""])


def _row(row: Row, y: int) -> list[str]:
    if isinstance(row, str):
        return [
            f'  <rect x="{LEFT}" y="{y - 15}" width="{960 - 2 * LEFT}" height="22" rx="4" fill="#fdf3d8"/>',
            f'  <text x="480" y="{y}" text-anchor="middle" font-style="italic">{escape(row)}</text>',
        ]
    start, end = (LANES[lane][0] for lane in row[:2])
    words, middle = escape(row[2]), (start + end) / 2
    return [
        f'  <path d="M{start} {y}H{end}" stroke="#22577a" stroke-width="1.5" marker-end="url(#tip)"/>',
        f'  <text x="{middle:g}" y="{y - 5}" {WORDS}>{words}</text>',
    ]


if __name__ == "__main__":
    TARGET.write_text(figure())
