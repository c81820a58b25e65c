"""Text to read: documents for next-token prediction."""

from __future__ import annotations

from logpi.errors import InputError
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Source, name_of, read_rows
from logpi.tasks.problems import Heldout, cell, place_of, split_sources


def text(data: Source, heldout: Heldout = 0.1, seed: int = 0) -> Task:
    """Return the task of a .txt file, or of rows {"text"}: documents to read. There are no rewards: it is for
    pre-training.

    Whole documents are held out. Of a single one, a fraction `heldout` of its lines, the last ones, is held out.
    """
    documents = read_documents(data)
    if len(documents) == 1 and isinstance(heldout, float) and 0 < heldout < 1:
        train, held = _cut(documents[0], heldout, name_of(data))
        return Task("text", [train], [held], rewards=[])
    train, held = split_sources(data, heldout, seed, read_documents)
    return Task("text", train, held, rewards=[])


def read_documents(source: Source) -> list[Problem]:
    """Return a problem for each document of a source; the document is its prompt."""
    name = name_of(source)
    rows = read_rows(source)
    documents = [cell(row, "text", index, name, str) for index, row in enumerate(rows)]
    for index, (row, document) in enumerate(zip(rows, documents)):
        if not document.strip():
            raise InputError(f'{place_of(row, index, name)}: "text" is empty; remove the row or fill it in')
    return [Problem(index, document) for index, document in enumerate(documents)]


def _cut(document: Problem, fraction: float, name: str) -> tuple[Problem, Problem]:
    """Return a document's first lines and its last ones, the share `fraction` of them."""
    lines = str(document.prompt).splitlines(keepends=True)
    num_held = max(1, round(fraction * len(lines)))
    parts = "".join(lines[:-num_held]), "".join(lines[-num_held:])
    if not all(part.strip() for part in parts):
        raise InputError(
            f"{name}: {len(lines)} lines are too few to hold out {fraction} of them; name a file (heldout)"
        )
    return Problem(0, parts[0]), Problem(1, parts[1])
