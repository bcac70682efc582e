"""Model files from outside: what is wrong is an error that names the key or the tensor; nothing ends the process."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyfastv import ModelError, OptionError, _native
from pyfastv.models import bundled_mmproj, bundled_model

from fuzz_files import Fuzzer, kinds
from gguf_parts import ARRAY, GGML_F16, GGML_F32, I32, STRING, U16, U32, File, Key, Tensor, read, write

LLAMA_CPP = Path(__file__).parents[1] / "third_party" / "llama.cpp" / "tools" / "mtmd"


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[Fuzzer]:
    with Fuzzer() as fuzzer:
        yield fuzzer


Edit = Callable[[File], None]


def value(key: str, value: object) -> Edit:
    def edit(file: File) -> None:
        file.key(key).value = value

    return edit


def added(name: str, type: int, value: object) -> Edit:
    return lambda file: file.keys.append(Key(name.encode(), type, value))


def shape(name: str, *dims: int) -> Edit:
    def edit(file: File) -> None:
        tensor = file.tensor(name)
        tensor.data = (tensor.data * 2)[: 4 * math.prod(dims)]
        tensor.shape = dims

    return edit


def filled(name: str, byte: int) -> Edit:
    def edit(file: File) -> None:
        tensor = file.tensor(name)
        tensor.data = bytes([byte]) * len(tensor.data)

    return edit


def without(name: str) -> Edit:
    return lambda file: file.tensors.remove(file.tensor(name))


def in_f16(name: str) -> Edit:
    def edit(file: File) -> None:
        tensor = file.tensor(name)
        tensor.type, tensor.data = GGML_F16, tensor.data[: len(tensor.data) // 2]

    return edit


VISION, LLAMA = "clip.vision", "llama"
WRONG: list[tuple[str, Edit, str]] = [
    # constants
    ("CLIP", value(f"{VISION}.image_std", [0.5, 0.0, 0.5]), f"{VISION}.image_std is 0"),
    ("CLIP", value(f"{VISION}.image_std", [0.5, math.nan, 0.5]), f"{VISION}.image_std has NaN"),
    (
        "CLIP",
        value(f"{VISION}.image_mean", [math.inf] * 3),
        f"{VISION}.image_mean is inf, not -10000 to 10000",
    ),
    ("CLIP", value(f"{VISION}.attention.layer_norm_epsilon", math.nan), "layer_norm_epsilon is nan"),
    ("CLIP", value(f"{VISION}.attention.layer_norm_epsilon", -1e-6), "layer_norm_epsilon is -1e-06"),
    ("text", value(f"{LLAMA}.attention.layer_norm_rms_epsilon", -1.0), "layer_norm_rms_epsilon is -1"),
    ("text", value(f"{LLAMA}.rope.freq_base", 0.0), f"{LLAMA}.rope.freq_base is 0"),
    ("text", value(f"{LLAMA}.rope.freq_base", -1e4), f"{LLAMA}.rope.freq_base is -10000"),
    ("text", value(f"{LLAMA}.rope.freq_base", math.nan), f"{LLAMA}.rope.freq_base is nan"),
    # weights
    ("CLIP", filled("v.blk.0.ln1.weight", 0xFF), "v.blk.0.ln1.weight has values that are not finite"),
    ("CLIP", filled("v.blk.3.attn_q.weight", 0xFF), "v.blk.3.attn_q.weight has values that are not finite"),
    ("text", filled("blk.3.ffn_down.weight", 0xFF), "blk.3.ffn_down.weight has values that are not finite"),
    # shapes and types
    ("CLIP", shape("v.position_embd.weight", 256, 578), "is 256 x 578, expected 256 x 577"),
    ("CLIP", shape("mm.0.bias", 513), "mm.0.bias is 513, expected 512"),
    ("CLIP", shape("v.blk.2.ln2.bias", 1), "v.blk.2.ln2.bias is 1, expected 256"),
    ("CLIP", in_f16("v.blk.1.ln1.weight"), "v.blk.1.ln1.weight is of type f16, expected f32"),
    ("CLIP", without("v.blk.4.attn_q.bias"), "v.blk.4.attn_q.bias is missing"),
    ("CLIP", value(f"{VISION}.attention.head_count", 5), f"{VISION}.attention.head_count is 5"),
    ("text", in_f16("blk.1.attn_norm.weight"), "blk.1.attn_norm.weight is of type f16, expected f32"),
    ("text", value(f"{LLAMA}.block_count", 0), f"{LLAMA}.block_count is 0"),
    # positions are written in twos: these would be behind the end
    ("Qwen2-VL", added(f"{VISION}.spatial_merge_size", U32, 1), f"{VISION}.spatial_merge_size is 1, not 2"),
    ("Gemma 3", value(f"{VISION}.projector.scale_factor", 0), f"{VISION}.projector.scale_factor is 0"),
    ("InternVL", value(f"{VISION}.projector.scale_factor", 3), "which does not divide the 8 patches"),
    ("MiniCPM-V", value("clip.minicpmv_query_num", 17), "clip.minicpmv_query_num is 17"),
    (
        "Gemma 4",
        value(f"{VISION}.projector.scale_factor", 64),
        "1120 of them are more pixels than a picture may have",
    ),
    (
        "Gemma 4",
        shape("v.position_embd.weight", 64, 33, 2),
        "v.position_embd.weight is 64 x 33 x 2, expected 64 x 66 x 2",
    ),
    ("Gemma 4", shape("v.blk.1.ffn_down.input_max", 2), "v.blk.1.ffn_down.input_max"),
    ("Gemma 4", without("mm.input_projection.weight"), "mm.input_projection.weight is missing"),
    ("LFM2-VL", value(f"{VISION}.patch_size", 24), "which does not divide slices of 512 pixels"),
    ("LFM2-VL", value(f"{VISION}.projector.scale_factor", 1), f"{VISION}.projector.scale_factor is 1, not 2"),
    ("LFM2-VL", shape("mm.input_norm.bias", 64), "mm.input_norm.bias is 64, expected 256"),
    # recurrent layers
    ("text of Qwen3.5", value("qwen35.full_attention_interval", 0), "qwen35.full_attention_interval is 0"),
    ("text of Qwen3.5", value("qwen35.ssm.inner_size", 64), "qwen35.ssm.inner_size is 64, not 128"),
    ("text of Qwen3.5", value("qwen35.ssm.group_count", 3), "qwen35.ssm.group_count is 3"),
    # vocabularies and texts
    ("text", value("tokenizer.ggml.scores", [0.0]), "tokenizer.ggml.scores has 1 values"),
    ("text", value("tokenizer.ggml.tokens", []), "tokenizer.ggml.tokens"),
    ("text", value("tokenizer.ggml.tokens", [b""] * 2048), "tokenizer.ggml.tokens"),
    ("text", value("tokenizer.chat_template", b"\xff\xfe"), "tokenizer.chat_template is not UTF-8"),
]


@pytest.mark.parametrize(("kind", "edit", "words"), WRONG, ids=[words for _, _, words in WRONG])
def test_what_is_wrong_in_a_file_is_named(fuzzer: Fuzzer, kind: str, edit: Edit, words: str) -> None:
    file = fuzzer.original(kind).copy()
    edit(file)
    outcome = fuzzer.try_file(kind, file)
    assert outcome.load == "named", outcome
    assert outcome.message.startswith("ModelError"), outcome
    assert words in outcome.message


CLAIMS: list[tuple[str, Edit, str]] = [
    ("CLIP", value(f"{VISION}.image_size", 2**30), "PYFASTV_LIMITS=image_size"),
    ("CLIP", value(f"{VISION}.block_count", 10**6), "PYFASTV_LIMITS=layers"),
    ("CLIP", value(f"{VISION}.embedding_length", 2**31 - 1), "PYFASTV_LIMITS=width"),
    ("CLIP", lambda file: setattr(file, "n_tensors", 2**40), "PYFASTV_LIMITS=tensors"),
    ("CLIP", lambda file: setattr(file, "n_keys", 2**62), "PYFASTV_LIMITS=keys"),
    ("CLIP", lambda file: setattr(file.key(f"{VISION}.image_mean"), "count", 2**62), "PYFASTV_LIMITS=array"),
    ("InternVL", value(f"{VISION}.preproc_max_tiles", 2**30), "PYFASTV_LIMITS=tiles"),
    ("Phi-4", value(f"{VISION}.image_min_pixels", 2**31 - 1), "PYFASTV_LIMITS=image_size"),
    ("SmolVLM", value(f"{VISION}.preproc_image_size", 2**30), "PYFASTV_LIMITS=image_size"),
    ("text", value(f"{LLAMA}.context_length", 2**31 - 1), "PYFASTV_LIMITS=context"),
    ("text", value(f"{LLAMA}.block_count", 10**6), f"{LLAMA}.block_count is 1000000, not 1 to 512"),
    ("text", value(f"{LLAMA}.vocab_size", 10**8), "PYFASTV_LIMITS=vocabulary"),
]


@pytest.mark.parametrize(("kind", "edit", "words"), CLAIMS, ids=[words for _, _, words in CLAIMS])
def test_a_claim_is_refused_before_memory_is_taken_for_it(
    fuzzer: Fuzzer, kind: str, edit: Edit, words: str
) -> None:
    fuzzer.try_file(kind, fuzzer.original(kind))  # what a right file takes is there
    file = fuzzer.original(kind).copy()
    edit(file)
    outcome = fuzzer.try_file(kind, file)
    assert outcome.load == "named", outcome
    assert words in outcome.message
    assert outcome.megabytes < 20


def test_files_changed_at_random_end_in_named_errors_or_answers(fuzzer: Fuzzer) -> None:
    names = kinds()
    bad = {}
    for number in range(100):
        kind = names[number % len(names)]
        changed, outcome = fuzzer.try_random(kind, 1, number)
        if not outcome.good:
            bad[f"{kind} {number}: {changed.what}"] = outcome
    assert not bad


def test_what_does_not_matter_changes_no_answer(fuzzer: Fuzzer) -> None:
    file = fuzzer.original("LLaVA").copy()
    file.keys.append(Key(b"general.name", STRING, b"\xff"))
    file.keys.append(Key(b"clip.vision.colour", ARRAY, [b"red"], STRING))
    file.tensors.append(Tensor(b"mm.9.bias", (1,), GGML_F32, bytes(4)))
    file.extra = bytes(1000)
    outcome = fuzzer.try_file("LLaVA", file)
    assert outcome.load == "same", outcome
    assert set(outcome.readers.values()) == {""}, outcome


def test_limits_are_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYFASTV_LIMITS", "tensors=120")
    with pytest.raises(ModelError, match=re.escape("the number of tensors is 121, more than 120")):
        _native.vision_info(str(bundled_mmproj()))
    monkeypatch.setenv("PYFASTV_LIMITS", "keys=4,tensors=121")
    with pytest.raises(ModelError, match="the number of keys is 20, more than 4"):
        _native.vision_info(str(bundled_mmproj()))
    for text in ("tensor=120", "tensors", "tensors=-1", "tensors=1e3"):
        monkeypatch.setenv("PYFASTV_LIMITS", text)
        with pytest.raises(OptionError, match=f'PYFASTV_LIMITS has "{text}".*keys, tensors'):
            _native.vision_info(str(bundled_mmproj()))

    file = read(bundled_model())
    file.key("llama.context_length").value = 10**8
    write(file, tmp_path / "long.gguf")
    monkeypatch.setenv("PYFASTV_LIMITS", "context=100000000")
    assert _native.model_info(str(tmp_path / "long.gguf"))["n_ctx_train"] == 10**8
    monkeypatch.delenv("PYFASTV_LIMITS")
    with pytest.raises(ModelError, match="context_length is 1e"):
        _native.model_info(str(tmp_path / "long.gguf"))


def test_later_parts_of_a_split_model_are_checked_too(tmp_path: Path) -> None:
    whole = read(bundled_model())
    half = len(whole.tensors) // 2
    for part, tensors in enumerate((whole.tensors[:half], whole.tensors[half:])):
        keys = whole.keys if part == 0 else []
        splits = [("split.no", part), ("split.count", 2), ("split.tensors.count", len(whole.tensors))]
        keys = [*keys, *(Key(name.encode(), I32 if "tensors" in name else U16, n) for name, n in splits)]
        write(File(keys, tensors), tmp_path / f"model-{part + 1:05}-of-00002.gguf")
    first, second = sorted(map(str, tmp_path.iterdir()))
    assert _native.model_info(first)["n_layer"] == 12

    file = read(Path(second))
    file.tensor("blk.9.ffn_norm.weight").type = GGML_F16
    file.tensor("blk.9.ffn_norm.weight").data = bytes(1024)
    write(file, Path(second))
    with pytest.raises(
        ModelError, match=r"-00002-of-00002\.gguf: tensor blk\.9\.ffn_norm\.weight is of type f16"
    ):
        _native.model_info(first)


def test_every_key_that_llama_cpp_reads_has_its_type_in_the_table() -> None:
    names = dict(re.findall(r'#define (KEY_\w+)\s+"([^"]+)"', (LLAMA_CPP / "clip-impl.h").read_text()))
    types = {"bool": "BOOL", "i32": "INT32", "u32": "UINT32", "f32": "FLOAT32", "string": "STRING"}
    read_by = re.findall(
        r"get_(bool|i32|u32|f32|string)\((?:string_format\()?(KEY_\w+)", (LLAMA_CPP / "clip.cpp").read_text()
    )
    expected = {(names[key].replace("%s", "%"), types[kind]) for kind, key in read_by}
    table = (Path(__file__).parents[1] / "native" / "vision" / "mmproj.cpp").read_text()
    written = set(re.findall(r'\{ "([\w.%]+)",\s+GGUF_TYPE_(\w+)', table))
    for key, type in [*written]:
        written |= {(key.replace("%", modality), type) for modality in ("vision", "audio", "gen.audio")}
    assert len(expected) > 40
    assert expected <= written


LIBMTMD = """
import sys
from pathlib import Path
from c_api import Model, llama
from vision_api import mtmd
from pyfastv.models import bundled_model

said = []
keep = llama.llama_log_callback(lambda level, text, user_data: said.append(text.decode()))
model = Model(bundled_model())
for function in (mtmd.mtmd_log_set, mtmd.mtmd_helper_log_set):
    function(keep, None)
params = mtmd.mtmd_context_params_default()
params.use_gpu, params.n_threads = False, 1
print(mtmd.mtmd_init_from_file(sys.argv[1].encode(), model.pointer, params))
print("".join(said))
"""


def test_libmtmd_refuses_such_files_in_other_programs_too(tmp_path: Path) -> None:
    file = read(bundled_mmproj())
    file.key(f"{VISION}.attention.head_count").value = 5
    write(file, tmp_path / "mmproj.gguf")
    done = subprocess.run(
        [sys.executable, "-c", LIBMTMD, str(tmp_path / "mmproj.gguf")],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("None"), done.stdout
    assert f"{VISION}.attention.head_count is 5, which does not divide" in done.stdout
