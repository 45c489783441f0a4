"""What the tests of a user's own questions share."""

import json

from carerft.tasks.questions import QuestionsTask


def lines(file, *rows) -> str:
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(file)


def task(path, **settings) -> QuestionsTask:
    return QuestionsTask(path=str(path), **({"question": "prompt", "grader": "exact"} | settings))
