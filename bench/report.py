"""How parts of `make bench` tell numbers and write bench/RESULTS.md."""

from __future__ import annotations

import platform
import statistics
from importlib.metadata import version
from pathlib import Path

from commands import ROOT

from seqrun.system import num_cores

RESULTS = ROOT / "bench" / "RESULTS.md"
BACKENDS = ("torch", "jax")
Row = tuple[str, str, str]
"""What was measured, the numbers, and a ratio or the parts."""


def median(values: list[float], digits: int = 0) -> str:
    """Return "median (min-max)"."""
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{mid:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratio(over: list[float], under: list[float]) -> str:
    """Return the median of the ratios of interleaved pairs."""
    return f"{statistics.median(a / b for a, b in zip(over, under, strict=True)):.2f}"


def machine() -> str:
    """Describe the machine and the packages in a line."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "jax", "numpy"))
    return f"{cpu}, {num_cores()} cores, Python {platform.python_version()}, {packages}"


def read_sections() -> dict[str, str]:
    """Return the parts of bench/RESULTS.md as they stand: name -> text."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    sections = [section.split("\n", 1) for section in text.split("\n## ")[1:]]
    return {name.strip(): body.strip() for name, body in sections}


def section(rows: list[Row], how: str) -> str:
    """Return a part's text: how and where it was measured, and its table."""
    lines = [f"`{how}` on {machine()}.", ""]
    lines += ["| what | median (min-max) | ratio or parts |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def write_sections(sections: dict[str, str], introduction: str) -> None:
    """Write bench/RESULTS.md: an introduction and the parts."""
    parts = [f"## {name}\n\n{body}" for name, body in sections.items()]
    RESULTS.write_text("\n\n".join(["# Speed", introduction, *parts]) + "\n", encoding="utf-8")
