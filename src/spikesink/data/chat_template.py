"""A tokenizer's chat template, run in a process of its own: it is a program of the checkpoint's author, in a sandbox.

There its time and memory can be bounded without touching those of the process that measures, in any of its threads.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from spikesink.errors import short
from spikesink.limits import bounded, panics_raised

SECONDS, BYTES = 2.0, 2**29
"""What a template may take for one conversation, beside what the conversation itself is."""
CHARACTERS = 2**20
"""What a template may add to a conversation: the longest system prompts have a tenth of it."""
PATIENCE = 60.0
"""Seconds for the process to start and to answer, which it does after SECONDS unless a compiled library loops."""

Messages = list[dict[str, Any]]
"""A conversation: `role`, `content` and what else each message has."""


class ChatTemplate:
    """What the tokenizer's chat template makes of a conversation. Raises ValueError where it names no template."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers import PreTrainedTokenizerBase

        self._tokenizer = tokenizer
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._end: Callable[[], object] = lambda: None
        # A tokenizer with a way of its own is code that the user trusts anyway.
        self._own = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        if not self._own:
            tokenizer.get_chat_template()

    def render(self, messages: Messages, tools: list[Any] | None = None, *, prompt: bool = True) -> str:
        """The text of a conversation in which tools may be called, with what begins the answer if `prompt`.

        Raises ValueError, TimeoutError or MemoryError with the reason, which a hostile template chooses.
        """
        # Code that comes with a checkpoint may know of no tools.
        told = {} if tools is None else {"tools": tools}
        said = [value for message in messages for key, value in message.items() if key != "role"]
        size = sum(len(str(value)) for value in (*said, *told.values()))
        if self._own:
            with panics_raised():
                text = self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=prompt, **told
                )
        else:
            # A tokenizer may have another template where there are tools.
            source = self._tokenizer.get_chat_template(tools=tools)
            request = {"messages": messages, "tools": tools, "prompt": prompt, "memory": BYTES + 8 * size}
            text = self._asked({"source": source, **request})
        if len(text) > 2 * size + CHARACTERS:
            raise ValueError(f"it makes {len(text):,} characters of {size:,}")
        return text

    def close(self) -> None:
        """End the process; a template that is asked again gets another."""
        self._end()
        self._process = None

    def _asked(self, request: dict[str, Any]) -> str:
        if self._process is None:
            self._process, self._answers = self._started()
        assert self._process.stdin is not None, "started with pipes"
        try:
            print(json.dumps(request, default=str), file=self._process.stdin, flush=True)
            answer = json.loads(self._answers.get(timeout=PATIENCE))
        except (OSError, ValueError, queue.Empty) as error:
            self.close()
            raise ValueError(f"it ended the process it runs in, or did not end within {PATIENCE:g} s") from error
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["text"]

    def _started(self) -> "tuple[subprocess.Popen[str], queue.Queue[str]]":
        code = f"import sys; sys.path[:] = {sys.path!r}; from spikesink.data.chat_template import serve; serve()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONUTF8": "1"},
            start_new_session=True,
        )
        answers: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_passed_on, args=(process, answers), daemon=True)
        reader.start()
        # Before the interpreter ends, too: a thread that still reads then would abort it.
        self._end = weakref.finalize(self, _ended, process, reader)
        assert process.stdin is not None, "started with pipes"
        print(json.dumps(self._tokenizer.special_tokens_map), file=process.stdin, flush=True)
        return process, answers


def _ended(process: "subprocess.Popen[str]", reader: threading.Thread) -> None:
    """Kill the process, and wait for the thread that reads what it says."""
    process.kill()
    process.wait()
    reader.join()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]


def _passed_on(process: "subprocess.Popen[str]", answers: "queue.Queue[str]") -> None:
    """Every answer into the queue, and an empty one where the process has ended."""
    assert process.stdout is not None, "started with pipes"
    for line in process.stdout:
        answers.put(line)
    answers.put("")


def serve() -> None:
    """Answer requests on standard input, a line of JSON each, until it ends: the process that ChatTemplate starts."""
    from transformers.utils.chat_template_utils import render_jinja_template

    special = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with bounded(SECONDS, request["memory"]):
                rendered, _ = render_jinja_template(
                    conversations=[request["messages"]],
                    tools=request["tools"],
                    chat_template=request["source"],
                    add_generation_prompt=request["prompt"],
                    **special,
                )
                answer = {"text": rendered[0]}
        except Exception as error:
            answer = {"error": short(error)}
        print(json.dumps(answer), flush=True)
