"""What all parts share: the machine, tables, and the file of results."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Results = dict[str, Any]
PACKAGES = ("torch", "vaetutor", "pythae", "pyro-ppl")


def machine() -> dict[str, Any]:
    """What the numbers were measured with."""
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    versions["torch"] = torch.__version__  # with the build, which the metadata may lack
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": versions,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_line(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    gpu = f"; {found['gpu']}" if found["gpu"] else ""
    return (
        f"{versions}; {found['processor']}, {found['cores']} cores, "
        f"{found['threads']} threads{gpu}."
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios within the turns, not the ratio of the medians."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def goal(name: str, least: float, measured: float) -> list[str]:
    verdict = "met" if measured >= least else "not met"
    return [name, f"{least:.2f}", f"{measured:.2f}", verdict]


def not_measured(reason: str) -> list[str]:
    return [f"Not measured: {reason}"]
