"""Run every page twice and compare what a reader is handed, byte for byte (``make determinism``).

Each run has a kernel of its own, hence other hashes of strings and other addresses in memory. Two
things are left out: what the book drops as well (stderr, all but the last state of a progress
bar), and the outputs of cells with the tag ``measured-time``, which show how long something took.
"""

import argparse
import copy
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from book import pages, read, run


def is_measured(cell: NotebookNode) -> bool:
    return "measured-time" in cell.metadata.get("tags", [])


def handed_out(notebook: NotebookNode) -> str:
    """`notebook` as readers get it, without measured times."""
    from vaebook import clean_outputs

    notebook = copy.deepcopy(notebook)
    for number, cell in enumerate(notebook.cells):
        cell.id = str(number)  # a random one otherwise; the export has names of its own
        if cell.cell_type == "code":
            cell.outputs = [] if is_measured(cell) else clean_outputs(cell.outputs)
    return nbformat.writes(notebook)


def differences(one: NotebookNode, other: NotebookNode) -> list[str]:
    """The cells in which two runs of a page differ, each with the place where they part."""
    texts = handed_out(one), handed_out(other)
    if texts[0] == texts[1]:
        return []
    found = []
    for cells in zip(*(nbformat.reads(text, 4).cells for text in texts), strict=True):
        pair = [nbformat.writes(nbformat.v4.new_notebook(cells=[cell])) for cell in cells]
        if pair[0] != pair[1]:
            parted = next(i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b)
            parts = (f"    {text[max(0, parted - 40) : parted + 40]!r}" for text in pair)
            name = f"  [{cells[0].execution_count}] {cells[0].source.splitlines()[0]}"
            found.append("\n".join([name, *parts]))
    return found or ["  the metadata of the notebook"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="*", type=Path, help="all pages with code if none is named")
    failed = False
    for page in parser.parse_args().page or pages():
        runs = read(page), read(page)
        for notebook in runs:
            run(notebook, page)
        found = differences(*runs)
        verdict = "differs from run to run" if found else "twice the same"
        measured = sum(map(is_measured, runs[0].cells))
        print(f"{page.name}: {verdict}, {measured} cells of measured time left out")
        print(*found, sep="\n", end="\n" if found else "", flush=True)
        failed |= bool(found)
    sys.exit(failed)


if __name__ == "__main__":
    main()
