"""Questions of reasoning-gym, as prompts whose answers its scorers judge, or as conversations with the right answer."""

from __future__ import annotations

import json
from collections.abc import Iterator

from llmlab import reasoning_tasks
from llmlab.data.account import Account, Document, Source
from llmlab.errors import UserError


def source(reads: str, task: str, n: int) -> Source:
    """`n` questions of a task, less those that are there twice: what is held out is not trained on. UserError for a task or a
    kind of record that they can't be."""
    if reads not in ("prompts", "chat"):
        raise UserError(f"data=reasoning_gym has questions, which are read as prompts or chat, not as {reads}")
    account = Account()
    reasoning_tasks.package()

    def read() -> Iterator[Document]:
        account.files = 1
        for question, answer, how in reasoning_tasks.made(task, n):
            prompt = question.rstrip() + "\n"
            if reads == "prompts":
                record: dict[str, object] = {
                    "prompt": prompt,
                    "rest": {"answer": answer, reasoning_tasks.FIELD: how},
                }
            elif answer is None:
                raise UserError(f"data.task={task}: its questions have no one answer to learn from")
            else:
                said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
                record = {"messages": said}
            yield Document(f"{task}:{how[3]}", json.dumps(record))

    return Source([reads, task, n, reasoning_tasks.version()], lambda tick: account.counted(read()), account)
