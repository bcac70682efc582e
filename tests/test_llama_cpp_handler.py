"""pyfastv.llama_cpp: a script of llama-cpp-python, the real package, with our handler in place of its own.

A process each, since llama_cpp can load its libraries once."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pyfastv
from pyfastv.engine import c_structures
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model

import random_mmproj
from c_api import fastv as libllama

ROOT = Path(__file__).parents[1]
EXAMPLES = bundled_examples()
CHART, CLOCK = EXAMPLES[-1].picture, EXAMPLES[0].picture
SETTINGS = [None, "fastv,k=2,drop=0.9", "recommended"]

SCRIPT = """
import base64, json, os, sys
from pyfastv.llama_cpp import FastVChatHandler
from llama_cpp import Llama

MODEL, MMPROJ, CHART, CLOCK = sys.argv[1:5]

loaded = []

def load(**options):
    handler = FastVChatHandler(MMPROJ, verbose=False, **options)
    # one thread: in a model this small more of them mostly wait for each other
    one = {"n_threads": 1, "n_threads_batch": 1}
    loaded.append(Llama(MODEL, chat_handler=handler, n_ctx=2048, verbose=False, **one))
    return loaded[-1]

def user(text, *pictures):
    def uri(picture):
        return "data:image/png;base64," + base64.b64encode(open(picture, "rb").read()).decode()
    parts = [{"type": "image_url", "image_url": {"url": uri(picture)}} for picture in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}

def ask(llm, *messages, **options):
    options = {"temperature": 0.0, "max_tokens": 48, **options}
    return llm.create_chat_completion(messages=list(messages), **options)

def text(completion):
    return completion["choices"][0]["message"]["content"].strip()

def fails(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]

made = {}
"""
END = """
for llm in loaded:  # llama-cpp-python complains of those that are open when Python ends
    llm.close()
print(json.dumps(made))
"""


def run(tmp_path: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "MTMD_"))}
    env["PYTHONPATH"] = str(Path(pyfastv.__file__).parents[1])
    files = [str(bundled_model()), str(bundled_mmproj()), str(CHART), str(CLOCK)]
    command = [sys.executable, "-c", code, *files]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env | environment)


def script(tmp_path: Path, code: str, **environment: str) -> Any:
    """What the code, behind SCRIPT, has put into ``made``."""
    done = run(tmp_path, SCRIPT + code + END, **environment)
    assert (done.returncode, done.stderr) == (0, "")  # verbose=False is quiet
    return json.loads(done.stdout.splitlines()[-1])


def test_answers_are_the_runners(runner: pyfastv.Runner, tmp_path: Path) -> None:
    made = script(
        tmp_path,
        f"settings = {SETTINGS!r}"
        """
made["each"] = []
for setting in settings:
    llm = load(fastv=setting)
    answer = text(ask(llm, user("Describe the image.", CHART)))
    report = llm.chat_handler.report
    times = [report.encode_ms, report.stage0_ms, report.later_ms]
    made["each"].append([answer, report.visual_tokens, report.visual_tokens_kept, report.prompt_tokens, times])
""",
    )
    for setting, (answer, seen, kept, prompt, times) in zip(SETTINGS, made["each"], strict=True):
        expected = runner.ask(CHART, "Describe the image.", fastv=setting, max_tokens=48)
        assert answer == expected.text
        assert (seen, kept) == (576, expected.report.visual_tokens_kept)
        assert prompt == expected.report.prompt_tokens
        assert [time > 0 for time in times] == [True, setting is not None, setting is not None]


def test_whole_numbers_may_be_floats(tmp_path: Path) -> None:
    made = script(
        tmp_path,
        """
llm = load()
made["answers"] = [
    text(ask(llm, user("Describe the image.", CHART), temperature=1.0, **{
        name: number(value) for name, value in {"max_tokens": 12, "top_k": 40, "seed": 42}.items()
    }))
    for number in (float, int)
]
""",
    )
    assert made["answers"][0] == made["answers"][1] != ""


def test_the_settings_answer_differently(runner: pyfastv.Runner) -> None:
    """Or the test above could not tell pruning from none."""
    answers = {runner.ask(CHART, "Describe the image.", fastv=s, max_tokens=48).text for s in SETTINGS[:2]}
    assert len(answers) == 2


def test_turns_pictures_and_streams(tmp_path: Path) -> None:
    """Two turns, the second with a second picture; streamed; and with another schedule than at first."""
    made = script(
        tmp_path,
        """
llm = load(fastv="fastv,k=2,drop=0.5")
handler = llm.chat_handler
first = user("Describe the image.", CHART)
made["first"] = text(ask(llm, first, max_tokens=16))
turns = [first, {"role": "assistant", "content": made["first"]}, user("Read the clock.", CLOCK)]
made["second"] = text(ask(llm, *turns, max_tokens=16))
made["kept"] = handler.report.visual_tokens_in_stage
chunks = ask(llm, *turns, stream=True, max_tokens=16)
made["early"] = fails(lambda: handler.report)
made["streamed"] = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks).strip()
made["of_stream"] = handler.report.visual_tokens_in_stage
handler.fastv = None
made["off"] = text(ask(llm, first, max_tokens=16))
made["text"] = text(ask(llm, user("Hello."), max_tokens=4))
made["without_picture"] = handler.report.visual_tokens
llm.close()
made["closed"] = handler.report.prompt_tokens > 0
""",
    )
    with pyfastv.Runner(n_ctx=2048, n_threads=1, fastv="fastv,k=2,drop=0.5") as runner:
        question = {"role": "user", "content": [_image(CHART), _text("Describe the image.")]}

        def ask(*messages: dict[str, Any], **options: Any) -> str:
            runner.set_fastv(options.get("fastv", "fastv,k=2,drop=0.5"))  # clears the context
            made = runner.create_chat_completion(messages, max_tokens=16)
            return str(made["choices"][0]["message"]["content"])

        first = ask(question)
        turns = [
            question,
            {"role": "assistant", "content": first},
            {"role": "user", "content": [_image(CLOCK), _text("Read the clock.")]},
        ]
        assert made["first"] == first
        assert made["second"] == made["streamed"] == ask(*turns)
        assert made["off"] == ask(question, fastv=None)
    assert made["kept"] == made["of_stream"] == [1152, 576]
    assert made["early"][0] == "Error"
    assert made["without_picture"] == 0
    assert made["closed"]


def _image(path: Path) -> dict[str, Any]:
    return {"type": "image", "image": path}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_arguments_of_chat_completion_hold(tmp_path: Path) -> None:
    made = script(
        tmp_path,
        """
llm = load()
json_only = {"type": "json_object"}
made["json"] = text(ask(llm, user("Read the clock.", CLOCK), response_format=json_only, max_tokens=64))
short = ask(llm, user("Describe the image.", CHART), max_tokens=3)
made["short"] = [short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]]
parameters = {"type": "object", "properties": {"hour": {"type": "integer"}}, "required": ["hour"]}
tools = [{"type": "function", "function": {"name": "clock", "parameters": parameters}}]
chosen = {"type": "function", "function": {"name": "clock"}}
call = ask(llm, user("Read the clock.", CLOCK), tools=tools, tool_choice=chosen)
made["tool"] = call["choices"][0]["message"]["tool_calls"][0]["function"]
""",
    )
    assert made["json"].startswith("{")
    assert made["short"] == [3, "length"]
    assert made["tool"]["name"] == "clock"
    assert isinstance(json.loads(made["tool"]["arguments"])["hour"], int)


def test_what_is_wrong_is_an_exception_and_the_next_request_works(
    runner: pyfastv.Runner, tmp_path: Path
) -> None:
    made = script(
        tmp_path,
        """
made["bad"] = fails(load, fastv="fastv,k=2,drop=2")
made["turbo"] = fails(load, turbo="share=2")
made["reduce"] = fails(load, reduce="pool,window=0")
late = load(fastv="fastv,k=40")
question = user("Read the clock.", CLOCK)
made["layer"] = fails(ask, late, question)
late.chat_handler.fastv = "fastv,k=2"
made["then"] = text(ask(late, question))
broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
made["picture"] = fails(ask, late, {"role": "user", "content": [broken]})
made["marker"] = []
for asked in ("What is <__media__>?", "a</s>b"):
    ask(late, user(asked, CLOCK), max_tokens=1)
    made["marker"].append(late.chat_handler.report.prompt_tokens)
made["again"] = text(ask(late, question))
other = Llama(MODEL, chat_handler=late.chat_handler, n_ctx=1024, verbose=False)
made["other"] = fails(ask, other, question)
""",
    )
    assert made["bad"][0] == "OptionError"
    assert "0 <= drop <= 1" in made["bad"][1]
    assert made["turbo"][0] == made["reduce"][0] == "OptionError"
    assert made["layer"][0] == "OptionError"
    assert "1 <= k <= 11" in made["layer"][1]
    assert made["then"] == made["again"] == EXAMPLES[0].answer
    assert made["picture"][0] == "ImageError"
    # the marker and names of control tokens are text to it as they are to the runner, whose marker is another
    asked = [runner.ask(CLOCK, text, max_tokens=1).report for text in ("What is <__media__>?", "a</s>b")]
    assert made["marker"] == [report.prompt_tokens for report in asked]
    assert "one handler for each" in made["other"][1]


def test_a_grammar_that_leads_nowhere_ends_the_answer_and_not_the_process(
    runner: pyfastv.Runner, tmp_path: Path
) -> None:
    no_character = r"[^\x00-\U0010FFFF]"
    grammars = {"at the end": f'root ::= "Yes" {no_character}', "at once": f"root ::= {no_character}"}
    made = script(
        tmp_path,
        f"grammars = {grammars!r}"
        """
from llama_cpp import LlamaGrammar
llm = load()
question = user("Read the clock.", CLOCK)
made["ends"] = {}
for name, grammar in grammars.items():
    for options in ({}, {"temperature": 1.0, "seed": 1}):
        answer = ask(llm, question, grammar=LlamaGrammar.from_string(grammar), **options)
        made["ends"].setdefault(name, []).append([text(answer), answer["choices"][0]["finish_reason"]])
import logging
logging.getLogger("llama-cpp-python").setLevel(99)  # what is wrong with it is in llama.cpp's log, too
made["none"] = fails(ask, llm, question, grammar=LlamaGrammar.from_string("root = nothing"))
made["then"] = text(ask(llm, question))
""",
    )
    for name, grammar in grammars.items():
        expected = runner.ask(CLOCK, "Read the clock.", grammar=grammar, max_tokens=48)
        # bytes that begin a character are allowed, and llama-cpp-python keeps them to itself
        whole = expected.text.rstrip("\ufffd")
        assert made["ends"][name] == [[whole, expected.finish_reason]] * 2
    assert made["none"][0] == "OptionError"
    assert "the grammar is not valid GBNF" in made["none"][1]
    assert made["then"] == EXAMPLES[0].answer


def test_turbo_merges_in_the_encoder(tmp_path: Path) -> None:
    made = script(
        tmp_path,
        """
llm = load(turbo="share=0.5", fastv="fastv,k=2,drop=0.5")
made["answer"] = text(ask(llm, user("Read the clock.", CLOCK)))
report = llm.chat_handler.report
made["tokens"] = [report.turbo.share, report.visual_tokens_in_stage]
""",
    )
    assert made["answer"] == EXAMPLES[0].answer
    assert made["tokens"] == [0.5, [288, 144]]


def test_reducers_are_the_runner_s(tmp_path: Path) -> None:
    """Alone, behind Turbo, with the question, renumbered, and of what is left; a picture that comes twice is two."""
    settings = [
        {"reduce": "pool,window=2", "fastv": "fastv,k=2,drop=0.5"},
        {"reduce": "divprune,keep=0.25", "turbo": "share=0.25", "fastv": None},
        {"reduce": "cdpruner,keep=100", "fastv": None},
        {"reduce": "stride,keep=100,renumber", "fastv": None},
        {"reduce": "stride,keep=0.5", "skip": "tau=4", "fastv": None},
        {"skip": "tau=4", "fastv": None},
    ]
    made = script(
        tmp_path,
        f"settings = {settings!r}"
        """
made["answers"], made["counts"] = [], []
for setting in settings:
    llm = load(**setting)
    made["answers"].append(text(ask(llm, user("Describe the image.", CHART, CHART), max_tokens=16)))
    report = llm.chat_handler.report
    made["counts"].append([report.encoded_tokens, report.prompt_tokens, *report.visual_tokens_in_stage])
""",
    )
    # as llama-cpp-python is by default: answers about few tokens hang by rounding
    with pyfastv.Runner(n_ctx=2048, n_threads=1, flash_attn="off") as runner:
        for setting, answer, counts in zip(settings, made["answers"], made["counts"], strict=True):
            expected = runner.ask([CHART, CHART], "Describe the image.", max_tokens=16, **setting)
            report = expected.report
            assert answer == expected.text
            assert counts == [report.encoded_tokens, report.prompt_tokens, *report.visual_tokens_in_stage]


@pytest.mark.parametrize("family", ["Qwen2-VL", "InternVL"])
def test_reducers_keep_the_places_of_other_models(tmp_path: Path, family: str) -> None:
    """M-RoPE, and a picture in several slices."""
    model, mmproj = random_mmproj.write_pair(tmp_path, family)
    rgb = np.random.default_rng(5).integers(0, 256, (168, 224, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "noise.png")
    made = script(
        tmp_path,
        f"""
handler = FastVChatHandler({str(mmproj)!r}, verbose=False, fastv="fastv,k=2,drop=0.5", reduce="divprune,keep=0.4")
llm = Llama({str(model)!r}, chat_handler=handler, n_ctx=2048, verbose=False, n_threads=1, n_threads_batch=1)
loaded.append(llm)
made["answer"] = text(ask(llm, user("What?", "noise.png"), max_tokens=8))
report = handler.report
made["counts"] = [report.encoded_tokens, report.prompt_tokens, *report.visual_tokens_in_stage]
import ctypes
from llama_cpp import llama_cpp
numbers = (ctypes.c_int32 * 96)()
n_slices = llama_cpp._lib.pyfastv_get_grids(ctypes.c_void_p(llm.ctx), 0, numbers, ctypes.c_size_t(32))
made["slices"] = [list(numbers[3 * i : 3 * i + 3]) for i in range(n_slices)]
""",
    )
    with pyfastv.Runner(model, mmproj, n_ctx=2048, n_threads=1, flash_attn="off") as runner:
        expected = runner.ask(
            rgb, "What?", max_tokens=8, fastv="fastv,k=2,drop=0.5", reduce="divprune,keep=0.4"
        )
        pictures = runner._engine.grids()
    report = expected.report
    assert made["answer"] == expected.text.strip()
    assert made["counts"] == [report.encoded_tokens, report.prompt_tokens, *report.visual_tokens_in_stage]
    assert made["slices"] == [[i, *grid] for i, picture in enumerate(pictures) for grid in picture]


# imports


def test_llama_cpp_may_be_imported_first_with_our_libraries(tmp_path: Path) -> None:
    ours = str(pyfastv.lib_path())
    done = run(
        tmp_path,
        "import llama_cpp, pyfastv.llama_cpp as ours, os; print(ours.FastVChatHandler)",
        LLAMA_CPP_LIB_PATH=ours,
    )
    assert done.returncode == 0, done.stderr


def test_llama_cpp_with_other_libraries_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "lib"
    other.mkdir()
    for (
        file
    ) in pyfastv.lib_path().iterdir():  # hard links, so that loading them here is loading them elsewhere
        (other / file.name).write_bytes(file.read_bytes())
    done = run(tmp_path, "import llama_cpp, pyfastv.llama_cpp", LLAMA_CPP_LIB_PATH=str(other))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pyfastv.errors.Error: llama_cpp was imported before pyfastv.llama_cpp")
    assert str(other) in last
    assert "pyfastv lib-path" in last


def test_a_handler_of_a_parent_raises_in_its_child(tmp_path: Path) -> None:
    """As a runner does: there are no threads that compute."""
    made = script(
        tmp_path,
        """
llm = load(fastv=None)
ask(llm, user("Hello."), max_tokens=1)
ours, theirs = os.pipe()
if not os.fork():
    os.write(theirs, json.dumps(fails(ask, llm, user("Hello."), max_tokens=1)).encode())
    os._exit(0)
os.wait()
made["child"] = json.loads(os.read(ours, 10_000))
""",
    )
    name, told = made["child"]
    assert name == "ClosedError"
    assert "this handler was made before this process was forked" in told


def test_the_environment_stays_as_it_was(tmp_path: Path) -> None:
    code = "import os, pyfastv.llama_cpp; print(os.environ.get('LLAMA_CPP_LIB_PATH'), os.environ['MTMD_CPP_LIB'])"
    assert run(tmp_path, code, MTMD_CPP_LIB="/elsewhere").stdout.split() == ["None", "/elsewhere"]


@pytest.mark.parametrize("version", ["0.3.35", None])
def test_another_version_is_refused(tmp_path: Path, version: str | None) -> None:
    code = "import sys; sys.path.insert(0, '.')\n"
    if version is None:
        code += "import importlib.metadata as m\ndef missing(name): raise m.PackageNotFoundError(name)\n"
        code += "real, m.version = m.version, lambda n: missing(n) if 'llama' in n else real(n)\n"
    else:
        info = tmp_path / f"llama_cpp_python-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {version}\n"
        (info / "METADATA").write_text(text)
    done = run(tmp_path, code + "import pyfastv.llama_cpp")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert (version or "is not installed") in last
    assert "LLAMA_BUILD=OFF" in last
    pin = json.loads((ROOT / "third_party" / "llama_cpp.json").read_text())["version"]
    assert f"llama-cpp-python=={pin}" in last


def test_the_structures_are_those_of_the_libraries() -> None:
    params = c_structures.FastvParams()
    text = b"k=3,drop=0.25,score=random7,pick=window5,weigh,merge,recall=0.5,cells=77"
    assert libllama.pyfastv_parse(text, 12, ctypes.byref(params)) == 0
    cut = params.cuts[0]
    assert (params.n_cuts, params.recall, params.n_cells) == (1, 0.5, 77)
    assert (cut.layer, cut.drop, cut.pick_number, cut.score_number) == (3, 0.25, 5, 7)
    assert (cut.weigh, cut.merge) == (True, True)
