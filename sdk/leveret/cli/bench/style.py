"""The style sheet of the page, light and dark."""

from __future__ import annotations

from typing import Final

__all__ = ["STYLE"]

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f8fa; --card: #ffffff; --edge: #d1d9e0; --text: #1f2328; --faint: #59636e; --grid: #e4e8ec;
  --first: #0969da; --second: #bc4c00; --guide: #818b98; --guide-fill: #c8d1da; --warn: #fff1e5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --card: #151b23; --edge: #3d444d; --text: #f0f6fc; --faint: #a5aeb8; --grid: #2a313c;
    --first: #58a6ff; --second: #f0883e; --guide: #9198a1; --guide-fill: #565e68; --warn: #2b2017;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 36px 0 10px; }
h3 { font-size: 16px; margin: 0; }
p { margin: 6px 0; }
.faint, figcaption, dt { color: var(--faint); }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 14px 16px; }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.machines { margin-top: 18px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 12px; margin: 8px 0 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.note { background: var(--warn); margin-top: 12px; }
ul { margin: 4px 0 0; padding-left: 20px; }

.rates { grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr)); }
.bars {
  display: grid; grid-template-columns: max-content 1fr max-content; gap: 5px 10px; align-items: center;
  margin-top: 10px;
  font-variant-numeric: tabular-nums;
}
.bars .track { display: block; height: 14px; }
.bars .track span { display: block; height: 100%; min-width: 2px; border-radius: 3px; background: var(--first); }
.bars .second span { background: var(--second); }
.bars .earlier span { opacity: .5; }
.bars .track.earlier { height: 7px; }
.bars .guide span { background: var(--guide-fill); border: 1px dashed var(--guide); }
.bars .value { text-align: right; white-space: pre; }
.bars .reason { grid-column: 2 / 4; }

.scroll { overflow-x: auto; padding: 0; }
.scroll:focus-visible { outline: 2px solid var(--first); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 5px 6px; text-align: right; white-space: nowrap; }
thead th {
  color: var(--faint); font-weight: 500; line-height: 1.25; white-space: normal; vertical-align: bottom;
  border-bottom: 1px solid var(--edge);
}
.name { text-align: left; }
th:first-child { padding-left: 14px; }
th:last-child, td:last-child { padding-right: 14px; }
tbody { border-top: 1px solid var(--grid); }
tbody th { font-weight: 600; vertical-align: top; position: sticky; left: 0; background: var(--card); }

.benchmark { margin-top: 14px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 6px 0 4px; padding: 0; list-style: none; }
.legend svg { width: 26px; height: 10px; vertical-align: middle; margin-right: 7px; }
.charts {
  display: grid; gap: 10px 18px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr));
  margin-top: 8px;
}
figure { margin: 0; min-width: 0; }
figcaption { font-size: 13px; }
figure svg { width: 100%; height: auto; display: block; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--faint); }
svg text.y { text-anchor: end; }
.grid { stroke: var(--grid); stroke-width: 1; }
.line { fill: none; stroke: var(--first); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.second { stroke: var(--second); stroke-dasharray: 7 4; }
.line.earlier { stroke-width: 1.5; stroke-dasharray: 1 4; }
footer { margin-top: 36px; font-size: 13px; }
@media (max-width: 500px) {
  main { padding: 16px 12px 32px; }
  .ways { grid-template-columns: 1fr; gap: 0; }
  .ways dd { margin-bottom: 6px; }
}
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
