"""On what an example computes: the options that NNabla's own examples have."""

from __future__ import annotations

import argparse

from distnn.context import Context
from distnn.ext_utils import get_extension_context


def add_context_options(parser: argparse.ArgumentParser, device_id: str) -> None:
    """Add -c/--context, -d/--device-id and -t/--type-config; `device_id` names the default."""
    parser.add_argument("-c", "--context", choices=["cpu", "cudnn"], default="cpu")
    parser.add_argument(
        "-d", "--device-id", type=int, metavar="N", help=f"number of the GPU; default {device_id}"
    )
    parser.add_argument(
        "-t",
        "--type-config",
        choices=["float", "half", "double"],
        default="float",
        help="what functions compute in; parameters are float32 with half, too",
    )


def context(options: argparse.Namespace, device_id: int = 0) -> Context:
    """The context that the options ask for; on device `device_id` where they name none."""
    return get_extension_context(
        options.context,
        device_id=device_id if options.device_id is None else options.device_id,
        type_config=options.type_config,
    )
