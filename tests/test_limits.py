"""What other libraries run is bounded, and a panic is an error."""

import subprocess
import sys
import threading
import time

import pytest

from spikesink.errors import InputError
from spikesink.limits import bounded, panics_raised


def tokenizer(pattern: str = "a"):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def test_a_regular_expression_that_gives_up_is_an_error_with_what_to_do(capfd):
    """tokenizers panics then, which is no `Exception`."""
    from spikesink.data import prompt_corpus, tokenise

    slow = tokenizer("(a+)+$")
    with pytest.raises(BaseException, match="retry-limit") as plain:
        slow("a" * 30 + "!")
    assert not isinstance(plain.value, Exception)
    with pytest.raises(InputError, match=r"cannot encode the text that begins 'aaa.*retry-limit.*--tokens"):
        tokenise(prompt_corpus("a" * 30 + "!"), slow, seq_len=4, sequences=1)


def test_other_exceptions_pass_unchanged():
    for error in (KeyboardInterrupt(), ValueError("x"), SystemExit(3)):
        with pytest.raises(type(error)) as caught, panics_raised():
            raise error
        assert caught.value is error


def test_a_loop_ends_and_leaves_no_alarm():
    with pytest.raises(TimeoutError, match=r"after 0\.05 s"), bounded(0.05, 2**30):
        sum(1 for _ in iter(int, 1))
    with bounded(0.05, 2**30):
        pass
    time.sleep(0.08)


def test_memory_ends_and_the_limit_is_as_it_was():
    """In a process of its own: what earlier tests freed is still mapped in this one, and may serve again."""
    code = """
import resource
from spikesink.limits import bounded

before = resource.getrlimit(resource.RLIMIT_AS)
try:
    with bounded(60, 2**26):
        bytearray(2**28)
except MemoryError:
    print("MemoryError")
assert resource.getrlimit(resource.RLIMIT_AS) == before
assert len(bytearray(2**28)) == 2**28
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=1200)
    assert (done.returncode, done.stdout) == (0, "MemoryError\n"), done.stderr


def test_in_another_thread_only_memory_is_bounded():
    results = []

    def work():
        with bounded(0.01, 2**30):
            time.sleep(0.03)
            results.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == ["done"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "not done after"),
        ("{{ messages[0].content * 4000000000 }}", "MemoryError"),
        ("{{ messages[0].content * 1000000 }}", "it makes 5,000,000 characters of 5"),
    ],
)
def test_a_hostile_chat_template(template, reason):
    from spikesink.data import prompt_corpus, tokenise

    made = tokenizer()
    made.chat_template = template
    with pytest.raises(InputError, match=rf"chat template .*{reason}.*without --chat-template"):
        tokenise(prompt_corpus("a a a"), made, seq_len=4, sequences=1, chat_template=True)


def test_a_chat_template_bounds_no_memory_here_and_works_in_any_thread():
    """It runs in a process of its own: another thread may take what it needs, and its time ends there, too."""
    import resource

    from spikesink.data.chat_template import ChatTemplate

    made, answers = tokenizer(), []
    made.chat_template = (
        "{% if messages[0].content == 'b' %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}<{{ messages[0].content }}>"
    )
    template, before = ChatTemplate(made), resource.getrlimit(resource.RLIMIT_AS)

    def work():
        answers.append(template.render([{"role": "user", "content": "a"}]))
        with pytest.raises(ValueError, match="not done after 2 s"):
            template.render([{"role": "user", "content": "b"}])
        answers.append(template.render([{"role": "user", "content": "c"}]))

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        assert resource.getrlimit(resource.RLIMIT_AS) == before
        thread.join(0.05)
    assert answers == ["<a>", "<c>"]
