"""Reading questions with contexts and answers: SQuAD's files, and tables with the same columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rmlora.errors import InputError, some_of
from rmlora.question_inputs import QuestionInputs
from rmlora.text_pair import TextPair
from rmlora.training.answer_cells import Answer, answers_in, located
from rmlora.training.data import Columns
from rmlora.training.empty_rows import explain_incomplete
from rmlora.training.held_out import choose_held_out, complete_splits
from rmlora.training.input_columns import find_column, input_columns, usual_names
from rmlora.training.json_rows import read_json_document
from rmlora.training.sources import open_table
from rmlora.training.table import Reading, Table
from rmlora.training.text_file import read_text
from rmlora.wording import counted

__all__ = ["Question", "QuestionData", "load_questions", "read_questions"]

_ANSWERS = ("answers", "answer", "answer_text", "label")
_START, _IMPOSSIBLE = "answer_start", "is_impossible"


@dataclass(frozen=True)
class Question:
    """A question, its context, and the right answers."""

    pair: TextPair
    answers: tuple[Answer, ...]
    """Every one of them is right; none means that the context does not answer the question."""


@dataclass(frozen=True)
class QuestionData:
    """One split."""

    source: str
    questions: tuple[Question, ...]
    notes: tuple[str, ...] = ()
    """Sentences about how the data was read and what was not used."""

    @property
    def unanswerable(self) -> int:
        """Number of questions that their contexts do not answer."""
        return sum(not question.answers for question in self.questions)


def load_questions(
    sources: Mapping[str, str | None], columns: Columns, reading: Reading, *, validation_fraction: float, seed: int
) -> dict[str, QuestionData]:
    """Load all splits; if no validation data is given, split it off the training data.

    Questions about one context end up on the same side. The split depends on ``seed`` only.

    Args:
        sources: split → file or dataset; None if it is not given.
        columns: names that the user chose.
        reading: how the user wants files read.
        validation_fraction: share of the contexts of the training data that is split off.
        seed: of the split.

    Raises:
        InputError: data is missing, unreadable or empty, or a row cannot be used.
    """
    train = read_questions(str(sources["train"]), columns, reading)
    return complete_splits(
        train,
        sources,
        lambda source: read_questions(source, columns, reading),
        lambda data: _split_off(data, validation_fraction, seed),
    )


def read_questions(source: str, columns: Columns, reading: Reading | None = None) -> QuestionData:
    """Read one file or hub dataset (``name`` or ``name:split``).

    Args:
        source: where the data is.
        columns: names that the user chose.
        reading: how the user wants the file read; None if the caller offers no choice.

    Raises:
        InputError: it cannot be read, lacks the columns, or a row cannot be used; it is named by its number.
    """
    table, names, answers = _open(source, columns, reading)
    absent = [None] * table.rows
    cells = [table.columns[name] for name in (*names, answers)]
    cells += [absent if name == answers else table.columns.get(name, absent) for name in (_START, _IMPOSSIBLE)]
    questions, empty, moved = [], list[int](), 0
    for row, (question, context, cell, start, impossible) in enumerate(zip(*cells, strict=True)):
        where = f"{table.unit.capitalize()} {table.numbers([row])[0]} of {source}"
        if _is_empty(question, context, where):
            empty.append(row)
            continue
        right = [] if _is_true(impossible) else answers_in(cell, start, context, where=where)
        found, changed = located(right, context, where=where)
        moved += changed
        questions.append(Question(TextPair(question, context), found))
    notes = [*table.notes]
    if empty:
        notes.append(explain_incomplete(empty, table, source, reading, lack=("question", "context")))
    if moved:
        notes.append(
            f"{counted(moved, 'answer')} of {source} came without a position, or with a wrong one: the first place in the context "
            "with these words was taken."
        )
    if not questions:
        raise InputError(f"{source} has no row with '{names[0]}' and '{names[1]}': check the columns.")
    unused = [name for name in table.columns if name not in (*names, answers, _START, _IMPOSSIBLE, "id", "title")]
    if unused:
        notes.append(f"Columns of {source} that are not used: {some_of(unused)}.")
    return QuestionData(source, tuple(questions), tuple(notes))


def _open(source: str, columns: Columns, reading: Reading | None) -> tuple[Table, tuple[str, str], str]:
    """Return the data, and the names of its columns with questions, contexts and answers."""
    inputs = QuestionInputs()
    table = _squad_file(source, reading) or open_table(
        source, {*usual_names(inputs), *_ANSWERS, _START, *columns.names}, reading
    )
    if table.rows == 0:
        raise InputError(f"{source} holds no rows: there is nothing to read.")
    names = input_columns(table, inputs, columns.chosen, source, "pair", guess=True)
    if len(names) == 1:
        raise InputError(
            f"It is not clear which columns of {source} hold questions and contexts (it has {some_of(list(table.columns))}): name them "
            "with --text-column and --pair-column."
        )
    advice = ". Answers are {text, answer_start} as in SQuAD, or a text; an empty one says that there is no answer."
    return table, (names[0], names[1]), find_column(
        table, columns.label, _ANSWERS, "--label-column", source, advice=advice
    )  # fmt: skip


def _squad_file(source: str, reading: Reading | None) -> Table | None:
    """Return the questions of a file as SQuAD's authors wrote it, articles with paragraphs; None if it is no such file."""
    path = Path(source)
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    text = read_text(path, reading.encoding if reading else None, flag=reading is not None)
    document = read_json_document(path, text)
    articles = document.get("data") if isinstance(document, dict) else None
    if not isinstance(articles, list) or not any(isinstance(item, dict) and "paragraphs" in item for item in articles):
        return None
    try:
        rows = [
            _row(item, paragraph)
            for article in articles
            for paragraph in article["paragraphs"]
            for item in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{source} lacks something of SQuAD's format ({type(error).__name__}: {error}): check it."
        ) from None
    return Table({name: [row[name] for row in rows] for name in ("question", "context", "answers")}, len(rows))


def _row(item: Mapping[str, Any], paragraph: Mapping[str, Any]) -> dict[str, Any]:
    impossible = _is_true(item.get(_IMPOSSIBLE))
    answers = [] if impossible else item["answers"]
    return {"question": item["question"], "context": paragraph["context"], "answers": answers}


def _is_true(cell: Any) -> bool:
    """Return True if a cell of ``is_impossible`` says so; answers in such a row are only plausible."""
    return str(cell).strip().lower() in ("true", "1", "1.0")


def _is_empty(question: Any, context: Any, where: str) -> bool:
    for name, cell in (("question", question), ("context", context)):
        if cell is not None and not isinstance(cell, str):
            raise InputError(f"{where} has {type(cell).__name__} as its {name}, where a text belongs: write one.")
    return not (question and question.strip() and context and context.strip())


def _split_off(data: QuestionData, fraction: float, seed: int) -> tuple[QuestionData, QuestionData]:
    keys = {item.pair.second for item in data.questions}
    if len(keys) < 2:
        raise InputError(
            f"{data.source} holds only one context, so no validation data can be split off: add rows, or give --validation."
        )
    chosen = choose_held_out(keys, fraction, seed)
    train = tuple(item for item in data.questions if item.pair.second not in chosen)
    held_out = tuple(item for item in data.questions if item.pair.second in chosen)
    return replace(data, questions=train), replace(data, questions=held_out, notes=())
