"""The files that `make costs` and `make prefetch` write: JSON, a chart, and the marked place of a page in docs."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asv_bench.compare import chart

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Outputs:
    """The options `--json`, `--markdown` and `--chart` of a program.

    Attributes:
        name: The name in the marks `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
        drawn: The content of the chart, for the help.
    """

    name: str
    drawn: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options."""
        parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
        parser.add_argument("--markdown", type=Path, metavar="FILE", help="fill the marked place of this file")
        parser.add_argument("--chart", type=Path, metavar="FILE.svg", help=f"draw {self.drawn} here")

    def check(self, parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
        """Ends the program when a file cannot be written, before anything is measured."""
        require_folders(parser, (options.json, options.chart, options.markdown))
        page = options.markdown
        if page is not None and not (page.is_file() and self._place.search(page.read_text())):
            parser.error(f"{page} has no place marked <!-- {self.name}:begin --> and <!-- {self.name}:end -->")

    @property
    def _place(self) -> re.Pattern[str]:
        return re.compile(rf"(?<=<!-- {self.name}:begin -->\n).*?(?=<!-- {self.name}:end -->)", re.DOTALL)

    def write(
        self,
        options: argparse.Namespace,
        rows: Sequence[Any],
        about: Mapping[str, str],
        *,
        title: str,
        panels: Sequence[chart.Panel],
        markdown: str,
    ) -> None:
        """Writes the files that the options name.

        Args:
            options: The options.
            rows: The results, dataclasses that become objects in JSON.
            about: Facts about the measurement, by name.
            title: The chart's title.
            panels: The chart's panels.
            markdown: The text for the marked place.
        """
        if options.json:
            document = {"schema": _SCHEMA, "facts": about, "rows": [dataclasses.asdict(row) for row in rows]}
            options.json.write_text(json.dumps(document, indent=1) + "\n")
        if options.chart:
            options.chart.write_text(chart.draw(panels, title))
        if options.markdown:
            page = options.markdown.read_text()
            options.markdown.write_text(self._place.sub(lambda _: markdown, page, count=1))


def require_folders(parser: argparse.ArgumentParser, paths: Iterable[Path | None]) -> None:
    """Ends the program when a file's folder does not exist, before anything is measured."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path} is in no folder that exists")


def markdown_page(
    about: Mapping[str, str], verdicts: Iterable[str], headings: Sequence[str], cells: Iterable[Iterable[str]]
) -> str:
    """Writes facts, verdicts and a table for a page in docs; the table's first column is left-aligned."""
    lines = [" ".join(f"{name}: {text}." for name, text in about.items()), ""]
    lines += [f"* {verdict}" for verdict in verdicts]
    lines += ["", f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
    lines += [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join(lines) + "\n"
