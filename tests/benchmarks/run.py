"""Measure all benchmarks, or some, and write them down.

    python tests/benchmarks/run.py [step likelihood quality growth memory gpu]
        [--quick --out FOLDER] [--threads 2] [--render]

Raw numbers go to ``results.json``, where a part that is measured again replaces only itself, and
from there to ``RESULTS.md``. ``--render`` writes the tables again without measuring. It is a
report, not a test: clocks on shared machines lie.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gpu
import growth
import likelihood
import memory
import quality
import step
import torch
from report import Results, machine, machine_line, not_measured

HERE = Path(__file__).resolve().parent
PARTS = {
    "step": ("A training step", step),
    "likelihood": ("A log-likelihood", likelihood),
    "quality": ("What a minute of training gives", quality),
    "growth": ("Amortised or per datapoint", growth),
    "memory": ("Memory", memory),
    "gpu": ("A training step on a GPU", gpu),
}


def render(results: Results) -> str:
    lines = ["# Benchmarks", "", "Made by `make bench` from `results.json`. How each is measured:"]
    lines += ["the head of the module of its name in `tests/benchmarks`."]
    for name, (title, part) in PARTS.items():
        lines += ["", f"## {title} (`{name}.py`)", ""]
        if name not in results:
            lines += not_measured("not run yet.")
            continue
        found = results[name]
        lines += [*part.render(found["found"]), "", machine_line(found["machine"])]
        if found["found"].get("left_out") and name != "gpu":
            names = ", ".join(found["found"]["left_out"])
            lines += ["", f"Left out, because not installed: {names}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks against other libraries.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--render", action="store_true", help="only write the tables again")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"PART must be one of {', '.join(PARTS)}, found {', '.join(unknown)}")
    if given.quick and given.out.resolve() == HERE:
        parser.error("--quick needs --out: its numbers mean nothing and must not be kept")
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in [] if given.render else given.parts or PARTS:
        print(f"{name} ...", flush=True)
        found = PARTS[name][1].measure(given.quick)
        results[name] = {"machine": machine(), "found": found}
        path.write_text(json.dumps(results, indent=1) + "\n")
    (given.out / "RESULTS.md").write_text(render(results))
    if "growth" in results:
        growth.draw(results["growth"]["found"], given.out / "growth.svg")


if __name__ == "__main__":
    main()
