"""A data analyst: writes Python about a table, runs it in the code interpreter's jail, and keeps the plots that it made.

python examples/data_analyst.py "Plot the lamps sold by month." --output plots

The code sees the table, no network and no other file. It needs a jail (`herd tools doctor`), `pip install pandas matplotlib`, and a model
that writes code: cria seldom does, so give --model a Llama, or --url a server that has one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import herd
from herd.tools.tool import Attachment

MONTHS = ("January", "February", "March", "April", "May", "June")
SOLD = {"lamps": (12, 15, 11, 21, 27, 30), "chairs": (7, 9, 8, 6, 11, 10)}
INSTRUCTIONS = """You are a data analyst. The table is the file {name}; its columns are: {columns}.
Answer with the code interpreter: read the file with pandas, plot with matplotlib, and call plt.show().
Then say in one sentence what is seen."""


def shop_table() -> Attachment:
    """The table of a furniture shop, for whoever has none at hand."""
    rows = [",".join(("month", *SOLD)), *(",".join(map(str, row)) for row in zip(MONTHS, *SOLD.values(), strict=True))]
    return Attachment(name="shop.csv", mime_type="text/csv", data="\n".join(rows).encode())


def analyse(model: Any, question: str, table: Attachment, output: Path, **more: Any) -> tuple[str, list[Path]]:
    """The answer to a question about a table, and the files that the code made, as they were put into `output`."""
    columns = table.data.split(b"\n", 1)[0].decode().strip()
    sampling = herd.SamplingParams(temperature=0.0, max_tokens=512)
    instructions = INSTRUCTIONS.format(name=table.name, columns=columns)
    with herd.Agent(model, tools=["code_interpreter"], instructions=instructions, sampling=sampling, **more) as agent:
        session = agent.session()
        session.add_file(table)
        for event in session.stream(question):
            if event.type == "tool_started":
                print(event.call.arguments.get("code", ""), file=sys.stderr)
        result = session.result
    assert result is not None
    kept: list[Path] = []
    for number, made in enumerate(result.attachments, start=1):
        path = output / f"{number}-{Path(made.name).name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.data)
        kept.append(path)
    return result.text, kept


def main() -> None:
    """Answer one question; the code goes to stderr, the answer and the names of the plots to stdout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default="Plot the lamps sold by month.")
    parser.add_argument("--table", type=Path, help="a .csv file with a first line of names; without it, a small shop's")
    parser.add_argument("--output", type=Path, default=Path("plots"), help="where plots go")
    parser.add_argument("--model", default="cria", help="path, hub name or alias")
    parser.add_argument("--url", help="of a server that has the model, as http://127.0.0.1:8321/v1")
    arguments = parser.parse_args()
    if arguments.table is None:
        table = shop_table()
    else:
        table = Attachment(name=arguments.table.name, mime_type="text/csv", data=arguments.table.read_bytes())
    answer, kept = analyse(arguments.model, arguments.question, table, arguments.output, base_url=arguments.url)
    print(answer or "(no answer)")
    for path in kept:
        print(path)
    if not kept:
        print("no plot was made; a larger model writes the code for one", file=sys.stderr)


if __name__ == "__main__":
    main()
