"""What a report may name: it travels, so by default no case, no machine and no folder of its author."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from trainable.data.split import load_split
from tune.run.events import Event
from tune.run.results import Run

# An absolute path of two parts at least; within quotes it may have spaces. A "/" after a letter begins none.
QUOTED_PATH = re.compile(r"""(['"`])(?:~|/[^/'"`\n]+)(?:/[^/'"`\n]+)+/?(?=\1)""")
PATH = re.compile(r"(?<![\w./])(?:~|/[^\s/'\"`:;,()<>|]+)(?:/[^\s/'\"`:;,()<>|]+)+/?")
URI = re.compile(r"\b(\w+)://[^\s'\"]+")
IP_ADDRESS = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\w)")


@dataclass(frozen=True)
class Privacy:
    """Replaces names.

    anonymous: False shows everything as it is. cases: names of the cases. hosts: names of the machines. folders: what
    stands for the path of a known folder, by path.
    """

    anonymous: bool = True
    cases: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)

    def case(self, name: str) -> str:
        """Return what a case is called: CASE_3, by the order of the names, if it may not be named."""
        return f"CASE_{self._case_numbers[name]}" if self.anonymous and name in self._case_numbers else name

    def host(self, name: str) -> str:
        """Return what a machine is called: "node 2", by the order of the names."""
        return f"node {self.hosts.index(name) + 1}" if self.anonymous and name in self.hosts else name

    def text(self, text: str) -> str:
        """Return a text in which names of cases and machines, paths and URIs are replaced; of a path its end stays."""
        if not self.anonymous:
            return text
        for path in sorted(self.folders, key=len, reverse=True):
            text = re.sub(re.escape(path) + r"(?![\w.-])", self.folders[path], text)
        text = URI.sub(r"\1://...", text)
        text = QUOTED_PATH.sub(lambda match: match[1] + _last_part(match[0][1:]), text)
        text = PATH.sub(lambda match: _last_part(match[0]), text)
        text = IP_ADDRESS.sub("IP", text)
        if self._names is not None:
            text = self._names.sub(lambda match: self.host(self.case(match[0])), text)
        return text

    @cached_property
    def _case_numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(sorted(set(self.cases)), 1)}

    @cached_property
    def _names(self) -> re.Pattern[str] | None:
        names = sorted({*self.cases, *self.hosts}, key=len, reverse=True)
        return re.compile("|".join(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])" for name in names)) if names else None


def _last_part(path: str) -> str:
    """Return ".../NAME" for a path that ends in NAME; "..." for one of two parts, such as the home of a user."""
    parts = path.strip("/").split("/")
    return f".../{parts[-1]}" if len(parts) > 2 else "..."


def privacy_of(run: Run, events: Iterable[Event], *, anonymous: bool) -> Privacy:
    """Return what a report on a run may name. A run whose split.json is missing has no names of cases to hide."""
    config, record = run.config, run.config.record
    cases = [*(load_split(run.dir.split).names if run.dir.split.exists() else ()), *record.skipped_cases]
    cases += [name for names in record.seen_cases.values() for name in names]
    hosts = dict.fromkeys(event.host for event in events if event.host)
    known = {str(run.folder): "RUN", str(run.folder.resolve()): "RUN", str(config.fixed("data_dir")): "DATA"}
    known |= {str(record.cache_dir): "CACHE", str(record.storage): "STORAGE"}
    folders = {path: name for path, name in known.items() if path.startswith("/") and len(path) > 1}
    return Privacy(anonymous, tuple(cases), tuple(hosts), folders)
