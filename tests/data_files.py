"""Small data files under the names that recipes' headers and the pages of docs/ call a reader's own."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path

import test_camrest
import test_poems
import test_role_labelling
import test_sentiment


def write(folder: Path) -> None:
    """Write all of them."""
    rows = [{"Body": f"Ann has {n} nuts.", "Question": "How many?", "Answer": n} for n in range(310)]
    (folder / "SVAMP.json").write_text(json.dumps(rows))
    rows = [{"question": f"What is {n} + 1?", "answer": f"It is <<{n}+1={n + 1}>>\n#### {n + 1}"} for n in range(20)]
    (folder / "gsm8k.jsonl").write_text(as_lines(rows))
    (folder / "shakespeare.txt").write_text("To be, or not to be,\nthat is the question:\n" * 30)
    rows = [{"numbers": [n, 2], "target": n + 2, "solution": f"{n}+2"} for n in range(210)]
    (folder / "countdown.jsonl").write_text(as_lines(rows))
    pairs = "".join(f"Number {n}.\tNuméro {n}.\n" for n in range(20))
    (folder / "en-fr.train.tsv.gz").write_bytes(gzip.compress(pairs.encode()))
    held = as_lines([{"src": "Number 20.", "refs": ["Numéro 20.", "Nombre 20."]}])
    (folder / "en-fr.dev.jsonl.gz").write_bytes(gzip.compress(held.encode()))
    Path(test_camrest.write(folder, [test_camrest.DIALOGUE] * 300)).rename(folder / "CamRest676.json.gz")
    test_sentiment.write(folder, "rt-polarity", num=3)
    (folder / "reviews.jsonl").write_text(
        as_lines([{"text": f"The film has {n} scenes and one idea."} for n in range(260)])
    )
    test_poems.write(folder)
    test_role_labelling.write(folder)
    (folder / "mails.jsonl").write_text(json.dumps(importlib.import_module("logpi.tasks.emails").SHOWN))


def as_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
