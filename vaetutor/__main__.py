"""The command line: ``python -m vaetutor train``, ``evaluate``, ``sample`` and ``reproduce``.

On several devices or machines: ``accelerate launch`` or ``torchrun``.
"""

from __future__ import annotations

import sys
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import get_args

from vaetutor._cli import add_options
from vaetutor._commands import evaluate, reproduce, sample, train
from vaetutor._folder import Refused
from vaetutor.recipes import DataUnavailable, ModelConfig, Split
from vaetutor.reproduce import CELLS, DRAWS, EPOCHS
from vaetutor.train import TrainConfig

CODES: list[tuple[type[BaseException], int]] = [
    (KeyboardInterrupt, 130),
    (DataUnavailable, 3),
    (FloatingPointError, 4),
    (Refused, 5),
    (OSError, 5),
    (ValueError, 2),
]
"""Exit code of each kind of error; the first that fits counts."""

EPILOG = """\
exit codes:
  0    done, or a slice of it
  2    an option or a value that is not possible
  3    images missing, damaged or out of reach
  4    training diverged
  5    the folder of the run: refused, not readable or not writable
  130  interrupted; the same command goes on from the last checkpoint
"""

TRAIN_EXAMPLE = """\
The same command again goes on from the last checkpoint, also with more epochs.

  python -m vaetutor train --data mnist --posterior full --prior vamp --output runs/a
  python -m vaetutor train --beta warmup:10 --epochs 40 --validation 400 --output runs/b
  torchrun --nproc_per_node 2 -m vaetutor train --output runs/c

"""
DRAWS_HELP = "draws of the importance-sampled log-likelihood [%(default)s]"
RESUMABLE = ("train", "reproduce")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    try:
        options.run(options)
    except tuple(kind for kind, _ in CODES) as error:
        if options.debug:
            traceback.print_exc()
        print(f"vaetutor {options.command}: {_message(error, options)}", file=sys.stderr)
        return next(code for kind, code in CODES if isinstance(error, kind))
    return 0


def _message(error: BaseException, options: Namespace) -> str:
    if not isinstance(error, KeyboardInterrupt):
        return str(error)
    on = "; to go on, run the same command again" if options.command in RESUMABLE else ""
    return f"interrupted{on}"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "python -m vaetutor",
        description="Train a variational autoencoder on images, and see how good it is.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[Namespace], None], epilog: str = "") -> ArgumentParser:
        text = run.__doc__ or ""
        added = commands.add_parser(
            run.__name__,
            help=text[0].lower() + text[1:].rstrip("."),
            description=text,
            epilog=epilog + EPILOG,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        return added

    one = command(train, TRAIN_EXAMPLE)
    one.usage = "%(prog)s --output FOLDER [option ...]"  # all of them would fill a page
    one.add_argument("--output", required=True, metavar="FOLDER", help="the folder of the run")
    add_options(one, ModelConfig)
    add_options(one, TrainConfig)

    two = command(evaluate)
    two.add_argument("folder", metavar="RUN", help="the folder of a run")
    two.add_argument("--n-samples", type=int, default=1000, metavar="INT", help=DRAWS_HELP)
    two.add_argument("--split", choices=get_args(Split), default="test", help="[test]")
    two.add_argument("--images", type=int, metavar="INT", help="only so many, the first ones")
    two.add_argument("--seed", type=int, default=0, metavar="INT", help="of the draws [0]")

    three = command(sample)
    three.add_argument("folder", metavar="RUN", help="the folder of a run")
    three.add_argument("--output", required=True, metavar="FILE", help="ends in .png or .npy")
    three.add_argument("--n", type=int, default=64, metavar="INT", help="how many images [64]")
    three.add_argument("--mean", action="store_true", help="the mean of x given z, not a draw")
    three.add_argument("--seed", type=int, default=0, metavar="INT", help="of the draws [0]")

    four = command(reproduce)
    four.add_argument("table", choices=["burda"], help="which table")
    four.add_argument("--output", required=True, metavar="FOLDER", help="where runs are kept")
    four.add_argument(
        "--cells", nargs="+", metavar="CELL", help=f"some of {', '.join(CELLS)} [all]"
    )
    four.add_argument(
        "--epochs", type=int, default=EPOCHS, metavar="INT", help=f"stop earlier [{EPOCHS}]"
    )
    four.add_argument(
        "--minutes", type=float, metavar="FLOAT", help="a slice: train for so long [to the end]"
    )
    four.add_argument(
        "--replicas", action="store_true", help="train the cells together, as batched products"
    )
    four.add_argument("--n-samples", type=int, default=DRAWS, metavar="INT", help=DRAWS_HELP)
    four.add_argument(
        "--seed", type=int, default=0, metavar="INT", help="of all but the first weights [0]"
    )

    for added in (two, three, four):
        added.add_argument("--device", metavar="DEVICE", help="[CUDA, else MPS, else the CPU]")
    for added in (one, two, three, four):
        added.add_argument(
            "--json",
            metavar="FILE",
            help="also as JSON; - for the standard output, with the table on the standard error",
        )
        added.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


if __name__ == "__main__":
    sys.exit(main())
