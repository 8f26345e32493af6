"""`herd replay`: the answer of a receipt, made again and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from herd.cli.load import JsonOption, ModelOption, ThreadsOption


def replay(
    receipt: Annotated[str, typer.Argument(help="A receipt, or an answer that holds one, as a JSON file; - reads stdin.")],
    model: ModelOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Make the answer of a receipt again, and say whether it is the same, token by token. Exit code 5 if it is not."""
    import json as json_format
    import sys

    from herd.base.errors import FormatError, GateError, NotFoundError
    from herd.cli.load import set_threads
    from herd.cli.output import line, note, print_json
    from herd.stack.receipts import read_receipt
    from herd.stack.replay import replay_receipt

    try:
        text = sys.stdin.read() if receipt == "-" else Path(receipt).read_text(encoding="utf-8")
        data = json_format.loads(text)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {receipt}", hint="give the JSON that the server sent") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{receipt} cannot be read as JSON: {error}", hint="give the JSON that the server sent") from error
    set_threads(threads)
    found = replay_receipt(read_receipt(data), model)
    if json:
        print_json(found.to_dict())
    else:
        for answer in found.answers:
            line(answer.text)
        for remark in found.remarks:
            note(remark)
    if not found.same:
        raise GateError(found.difference or "the answers differ", hint="the remarks tell what differs in weights, kernels or versions")
    note(
        f"the same: {sum(len(answer.token_ids) for answer in found.answers)} tokens" + (" and log-probabilities" if found.logprobs else "")
    )
