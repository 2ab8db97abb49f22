"""What a run says when it has ended, and its exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flatfleet.commands import exits
from flatfleet.runtime.stores.contract import Counts


@dataclass(frozen=True)
class Summary:
    """The end of one run, for people and (as_dict) for programs."""

    machine: str
    output: dict[str, Any]
    counts: Counts | None
    errors: Mapping[str, int]
    failures: Mapping[str, str]
    seconds: float
    store: str
    durable: bool
    pool: str | None
    out: str
    interrupted: bool
    handed_back: int

    def as_dict(self) -> dict[str, Any]:
        counts = asdict(self.counts) | {"left": self.counts.left, "total": self.counts.total} if self.counts else None
        return {
            "machine": self.machine,
            "output": self.output,
            "pool": self.pool,
            "counts": counts,
            "errors": dict(self.errors),
            "failures": dict(self.failures),
            "seconds": round(self.seconds, 3),
            "store": self.store,
            "out": self.out,
            "interrupted": self.interrupted,
            "handed_back": self.handed_back,
        }

    def text(self) -> str:
        if self.counts is None or not self.counts.total:
            return "stopped" if self.interrupted else _lines(self.output)
        counts = self.counts
        lines = [f"{counts.completed} done, {counts.dead} dead, {counts.left} left in {self.seconds:.1f} s"]
        lines += [f"  {n} × {name}" for name, n in self.errors.items()]
        lines += [f"  {name} ended: {why}" for name, why in list(self.failures.items())[:5]]
        if self.out and Path(self.out).is_dir():
            lines.append(f"Reports are in {self.out}/")
        if self.durable:
            store = "" if self.store == "sqlite:fleet.db" else f" --store {self.store}"
            pool = "" if self.pool == "papers" else f" --pool {self.pool}"
            lines.append(f"All results and errors: flatfleet results{pool}{store}")
        if self.interrupted:
            back = f", {self.handed_back} handed back" if self.handed_back else ""
            lines.append(f"Stopped{back}. The same command goes on from here.")
        return "\n".join(lines)

    def exit_code(self, failures: Mapping[str, BaseException]) -> int:
        if self.interrupted:
            return exits.INTERRUPTED
        if failures:
            return max(exits.code_of(error) for error in failures.values())
        if (self.counts is not None and self.counts.dead) or self.output.get("skipped"):
            return exits.SOME_FAILED
        return exits.DONE


def _lines(output: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in output.items())
