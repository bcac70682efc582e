"""Texts and grammars of any length and any bytes have an answer or an error.

What could end the process runs in a child.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pyfastv import ContextLengthError, OptionError, Runner, _native
from pyfastv.constraints.grammar import schema_grammar

import text_vocab
from random_gguf import write as write_model

ROOT = Path(__file__).parents[1]
VOCABULARIES = ROOT / "third_party" / "llama.cpp" / "src" / "llama-vocab.cpp"

# in a thread with the stack that macOS gives one
CHILD = """
import ctypes, sys, threading
sys.path.insert(0, {tests!r})
from c_api import llama

def tokens(path, text):
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(path.encode(), params)
    assert model, path
    vocab = llama.llama_model_get_vocab(model)
    found = (llama.llama_token * (3 * len(text) + 8))()  # U+FFFD, for a byte that is no text, has three
    count = llama.llama_tokenize(vocab, text, len(text), found, len(found), False, True)
    llama.llama_model_free(model)
    return found[:count]

def grammar(path, text):
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(path.encode(), params)
    sampler = llama.llama_sampler_init_grammar(llama.llama_model_get_vocab(model), text, b"root")
    return bool(sampler)

def work():
{work}

def work_and_tell():
    work()
    print("done")

threading.stack_size(512 * 1024)
thread = threading.Thread(target=work_and_tell)
thread.start()
thread.join()
"""


def child(work: str, timeout: float = 60.0) -> list[str]:
    """What the lines of Python print."""
    indented = "\n".join(f"    {line}" for line in work.splitlines())
    code = CHILD.format(tests=str(Path(__file__).parent), work=indented)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, cwd="/"
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.returncode} after {lines[-1:]}: {done.stderr[-2000:]}"
    assert lines[-1:] == ["done"], done.stderr[-2000:]
    return lines[:-1]


#
# the matcher
#


@cache
def expressions() -> list[str]:
    """Of all pre-tokenizers."""
    groups = re.findall(r"regex_exprs = \{(.*?)\n\s*\};", VOCABULARIES.read_text(encoding="utf-8"), re.S)
    lines = [line for group in groups for line in group.splitlines() if not line.strip().startswith("//")]
    literals = {found for line in lines for found in re.findall(r'"((?:[^"\\]|\\.)*)"', line)}
    escapes = {"\\\\": "\\", "\\r": "\r", "\\n": "\n", '\\"': '"'}
    found = sorted(re.sub(r'\\[\\rn"]', lambda hit: escapes[hit[0]], literal) for literal in literals)
    assert len(found) > 30
    return found


# matched by functions of llama.cpp's own
OWN = {r"\p{Han}+", r"\p{AFMoE_digits}", r"\d{1,3}(?=(?:\d{3})*\b)"}
# a category as llama.cpp writes it: the ASCII characters, and one that stands for all others
CATEGORIES = {
    "N": "0-9Ñ",
    "L": "A-Za-zÒ",
    "P": r"!-#%-*,-/:-;?-@\[-\]_\{\}Ó",
    "M": "Ô",
    "S": r"\$\+<->\^`\|~Õ",
}


def collapsed(expression: str) -> str:
    """With the categories spelled out."""

    def spelled(hit: re.Match[str]) -> str:
        before = re.sub(r"\\.", "", expression[: hit.start()])
        inside = before.rfind("[") > before.rfind("]")
        name = hit[1] if hit[1] in CATEGORIES else hit[1][0]
        return CATEGORIES[name] if inside else f"[{CATEGORIES[name]}]"

    return re.sub(r"\\p\{(\w+)\}", spelled, expression)


def split_by_python(expression: str, text: str) -> list[int]:
    lengths, end = [], 0
    # in ECMAScript's single-line mode $ is the very end; Python's re has no empty classes
    for match in re.finditer(
        expression.replace("$", r"\Z") if expression == r"\s+$" else expression, text, re.A
    ):
        if match.start() > end:
            lengths.append(match.start() - end)
        lengths.append(match.end() - match.start())
        end = match.end()
    return lengths + [len(text) - end] * (end < len(text))


PIECES = [
    *"aZsQ1'!(/-_$+^~ÑÒÓÔÕ中あ한、。µ",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "'s",
    "'RE",
    "12",
    "3456",
    "IMGIMGABZ",
    "<sentinel:1>",
]


def texts(seed: int, count: int) -> Iterator[str]:
    choose = random.Random(seed)
    for _ in range(count):
        few = choose.sample(PIECES, 4)
        pieces = choose.choice([PIECES, few])
        yield "".join(
            choose.choice(pieces) * choose.choice([1, 1, 1, 1, 7]) for _ in range(choose.randrange(1, 40))
        )


def test_matches_are_those_of_a_backtracking_matcher() -> None:
    taken = [expression for expression in expressions() if expression not in OWN]
    for seed, expression in enumerate(map(collapsed, taken)):
        for text in texts(seed, 60):
            found = _native.regex_split(text, expression)
            assert found == split_by_python(expression, text), (expression, text)


def test_an_expression_beyond_what_is_taken_is_told() -> None:
    for expression in (
        r"a.",
        r"(a*)*",
        r"a*?",
        r"(a)\1",
        r"[[:alpha:]]",
        r"\bx",
        "a{2000}",
        "(" * 100 + "a" + ")" * 100,
    ):
        assert _native.regex_split("aaa", expression) is None, expression


def test_time_grows_with_the_text_and_not_with_its_square() -> None:
    # each of them was tried from every place of the text, to its end, by a matcher that forgets
    for expression, text in (
        (r"\s+$", " " * 300_000 + "x"),
        (r"(?=(\d{3})+(?!\d))", "1" * 300_000),
        (r"\s*[\r\n]+|\s{16}", " " * 300_000),
        (r"(?:a b)+c", "a b" * 100_000),
    ):
        begin = time.perf_counter()
        lengths = _native.regex_split(text, expression)
        assert time.perf_counter() - begin < 10, expression
        assert lengths is not None
        assert sum(lengths) == len(text)


#
# tokenizers
#


def pre_tokenizers() -> list[str]:
    return sorted(set(re.findall(r'tokenizer_pre == "([^"]+)"', VOCABULARIES.read_text(encoding="utf-8"))))


RUNS = ["a", "A", "aB", "1", " ", "\n", " \n", "!", "'s", "中", "😀", "\u0301", "क्", "a\u00a0", "$", "x "]


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one for every pre-tokenizer."""
    folder = tmp_path_factory.mktemp("vocabularies")
    for pre in pre_tokenizers():
        text_vocab.write(folder / f"{pre}.gguf", pre)
    return folder


def test_every_pre_tokenizer_takes_long_runs_of_one_character(vocabularies: Path) -> None:
    text = "".join(run * 6000 for run in RUNS)
    assert len(text) > 100_000
    lines = child(f"""
text = "".join(run * 6000 for run in {RUNS!r}).encode()
for pre in {pre_tokenizers()!r}:
    print(pre, flush=True)
    print(len(tokens(f"{vocabularies}/{{pre}}.gguf", text)), flush=True)
""")
    counts = dict(zip(lines[::2], map(int, lines[1::2]), strict=True))
    assert set(counts) == set(pre_tokenizers())
    assert min(counts.values()) > 6000


def test_a_million_equal_characters_are_tokenized(vocabularies: Path) -> None:
    lines = child(f"""
for pre, run in (("tekken", b"a"), ("superbpe", b"1"), ("jais-2", b" "), ("gpt-4o", b"A")):
    print(len(tokens(f"{vocabularies}/{{pre}}.gguf", run * 1_000_000)))
""")
    assert lines == ["62500", lines[1], "62500", "1000000"]  # tokens of 16 characters; "A" has no merges


def test_special_tokens_take_time_in_proportion_to_the_text(vocabularies: Path) -> None:
    (count,) = child(
        f'print(len(tokens("{vocabularies}/tekken.gguf", b"</s>" * 100_000 + b"a</s>" * 20_000)))', timeout=30
    )
    assert int(count) == 140_000


def test_bytes_without_a_token_of_their_character_take_time_in_proportion(tmp_path: Path) -> None:
    write_model(tmp_path / "bytes.gguf", "llama", vocab=["<pad>"])
    (count,) = child(f'print(len(tokens("{tmp_path}/bytes.gguf", b"\\xe4\\xb8\\xad" * 700_000)))', timeout=40)
    assert int(count) == 2_100_000


def test_special_tokens_divide_a_text_where_they_stand(vocabularies: Path) -> None:
    (found,) = child(f'print(tokens("{vocabularies}/gpt-2.gguf", b"</s>B<s></s>C</s>D<s>"))')
    begin, end = 256 + 4 * len(text_vocab.MERGED), 257 + 4 * len(text_vocab.MERGED)
    assert found == str([end, ord("B"), begin, end, ord("C"), end, ord("D"), begin])


@pytest.mark.parametrize(
    ("pre", "text"),
    [
        ("tekken", b"a\xf7\xbf\xbf\xbfb"),  # beyond Unicode
        ("tekken", b"\xff\xfe\x80" * 100),
        ("tekken", b"\xed\xa0\x80"),  # half of a surrogate pair
        ("kimi-k2", b""),
        ("whitespace", b"a  b"),  # spaces of a pre-tokenizer that keeps them
    ],
)
def test_bytes_that_are_no_text_are_tokenized(vocabularies: Path, pre: str, text: bytes) -> None:
    (count,) = child(f'print(len(tokens("{vocabularies}/{pre}.gguf", {text!r})))')
    assert int(count) >= len(text) // 4


#
# texts that do not fit
#


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """1024 tokens of context; bytes, and one long token."""
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    write_model(path, "qwen2", vocab=[], words=["<" + "long" * 50 + ">"])
    with Runner(path, n_threads=1) as runner:
        yield runner


def test_a_text_that_cannot_fit_is_refused_by_its_length(small: Runner) -> None:
    with pytest.raises(
        ContextLengthError, match=r"at least 15\d{4} tokens \(3\d{7} bytes of text\), but n_ctx is 1024"
    ) as caught:
        small.ask(None, "x" * 32_000_000)
    assert caught.value.n_tokens is not None
    assert caught.value.n_tokens > 150_000


def test_a_long_text_of_long_tokens_fits(small: Runner) -> None:
    token = "<" + "long" * 50 + ">"
    assert small.ask(None, token * 700, max_tokens=1).report.prompt_tokens < 1024  # 141,400 characters


def test_a_space_may_be_several_tokens(small: Runner) -> None:
    # this vocabulary has no token for the character that stands for a space, but its three bytes
    assert small.ask(None, " " * 100, max_tokens=1).report.prompt_tokens > 300
    with pytest.raises(ContextLengthError, match=r"the prompt has 1\d{3} tokens of text, but n_ctx is 1024"):
        small.ask(None, " " * 400)


def test_a_vocabulary_that_cannot_spell_a_text_is_a_model_error(tmp_path: Path) -> None:
    path, lacking, none = tmp_path / "whole.gguf", tmp_path / "lacking.gguf", tmp_path / "none.gguf"
    write_model(path, "llama", vocab=["<pad>"])
    lacking.write_bytes(path.read_bytes().replace(b"<0x41>", b"unused"))
    write_model(none, "llama")
    child(f"""
from pyfastv import ModelError, Runner
for path, text, told in (({str(lacking)!r}, "A", "no token for a part"), ({str(none)!r}, "B", "has no vocabulary")):
    with Runner(path, n_threads=1) as runner:
        try:
            runner.ask(None, text, max_tokens=1)
        except ModelError as error:
            assert told in str(error)
        else:
            raise AssertionError(path)
""")


#
# grammars
#


def test_deep_and_ambiguous_grammars_are_refused_or_taken(vocabularies: Path) -> None:
    chain = "".join(f"r{i} ::= r{i + 1}\n" for i in range(50_000)) + 'r50000 ::= "a"\nroot ::= r0'
    # every way through it is another one: 2^60
    doubling = "".join(f"r{i} ::= r{i + 1} | r{i + 1}\n" for i in range(60)) + 'r60 ::= "a"\nroot ::= r0'
    circle = "".join(f"r{i} ::= r{i + 1}\n" for i in range(60)) + 'r60 ::= "a"* r0\nroot ::= r0'
    grammars = {
        "groups": "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000,
        "some groups": "root ::= " + "(" * 300 + '"a"' + ")" * 300,
        "chain": chain,
        "doubling": doubling,
        "circle": circle,
        "itself": 'root ::= root "a" | "b"',
        "behind what may be empty": 'root ::= x root\nx ::= "a" | ""',
        "behind a character": 'root ::= "a" root | "b"',
    }
    folder = vocabularies / "grammars"
    folder.mkdir()
    for name, text in grammars.items():
        (folder / name).write_text(text)
    lines = child(f"""
for name in {list(grammars)!r}:
    print(grammar("{vocabularies}/gpt-2.gguf", open(f"{folder}/{{name}}", "rb").read()), flush=True)
""")
    taken = {"some groups", "chain", "doubling", "behind a character"}
    assert dict(zip(grammars, lines, strict=True)) == {name: str(name in taken) for name in grammars}


def test_the_runner_goes_on_after_a_grammar_that_is_too_deep(small: Runner) -> None:
    with pytest.raises(OptionError, match="grammar is not valid"):
        small.ask(None, "x", grammar="root ::= " + "(" * 5_000 + '"a"' + ")" * 5_000)
    assert small.ask(None, "x", grammar='root ::= "a"', max_tokens=4).text == "a"


def test_messages_nested_without_end_are_refused(small: Runner) -> None:
    deep: object = "x"
    for _ in range(100_000):
        deep = [deep]
    messages: list[Any] = [
        {"role": "user", "content": {"a": deep}},
        {"role": deep},
        {"role": "user", "content": deep},
    ]
    for message in messages:
        with pytest.raises(OptionError, match=r"messages\[0\]"):
            small.create_chat_completion([message])
    with pytest.raises(OptionError, match="stop must be"):
        small.ask(None, "x", stop=deep)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="JSON schema"):
        schema_grammar(deep)


def test_a_schema_whose_parts_are_shared_again_and_again_is_answered(small: Runner) -> None:
    parts = {f"r{i}": {"anyOf": [{"$ref": f"#/$defs/r{i + 1}"}] * 2} for i in range(60)}
    schema = {"$defs": {**parts, "r60": {"const": 1}}, "$ref": "#/$defs/r0"}
    assert small.ask(None, "x", grammar=schema_grammar(schema), max_tokens=8).text.strip() == "1"


def test_a_stop_string_of_any_length_costs_nothing(small: Runner) -> None:
    answer = small.ask(None, "x", grammar='root ::= "abc"', stop=["y" * 10_000_000, "c"], max_tokens=8)
    assert answer.text == "ab"
