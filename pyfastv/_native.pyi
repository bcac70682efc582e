"""The native module: llama.cpp, mtmd and the stages, behind one class. Private; use :class:`pyfastv.Runner`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from os import PathLike
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

_Path: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]  # of any bytes, as os.fsencode() takes it

def n_forks() -> int:
    """Forks between the first process that made an Engine or called this, and this one: a child has one more than
    its parent. An Engine that a child inherits raises ClosedError, is closed, and is not freed there."""

def system_info() -> str:
    """llama.cpp's own line of compiled-in features (``CPU : AVX2 = 1 | ...``)."""

def build_info() -> dict[str, Any]:
    """``llama_cpp_python`` (pin), ``llama_cpp`` (version), ``compiler``, ``build_type``, ``patches`` (list of names)."""

def backends() -> list[dict[str, str]]:
    """Devices: ``name``, ``description``, ``type`` (cpu, gpu, igpu, accel)."""

def kernels() -> dict[str, Any]: ...  # "chosen": of products.h, or None for llama.cpp's; "known": of this CPU
def kernel_places() -> list[tuple[str, str]]:
    """(device, kind of buffer): where a model's weights can lie, which chooses its kernels; in llama.cpp's order."""

def weight_types() -> list[str]:
    """ggml's names of the types that weights can have."""

def random_weights(
    type: str, n_rows: int, n_columns: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Blocks of a type [n_rows, bytes], and their values [n_rows, n_columns] by ggml's plain code. Raises ValueError."""

def multiply(
    device: str,  # a pair of kernel_places()
    buffer: str,
    type: str,
    weights: NDArray[np.uint8],  # [n, bytes], blocks of the type
    inputs: NDArray[np.float32],  # [m, n_columns]
    n_threads: int,
) -> NDArray[np.float32] | None:
    """[m, n]: inputs by the rows of weights, by the kernel that a model would use; None: no weights of this type go
    there. Raises ValueError, OutOfMemoryError, DecodeError."""

def choose(
    scores: NDArray[np.float32],  # [n]
    cut: str,  # "drop=0.5,pick=window4": fields of a cut in the language of pyfastv_parse() (native/include/pyfastv.h)
    *,
    grids: Sequence[tuple[int, int]] | None = None,  # (nx, ny) of every slice; None: one row
    present: NDArray[np.bool_] | None = None,  # [n] False: not to be chosen; None: all
    similarity: NDArray[np.float32]
    | None = None,  # [m, m] for pick=cover: cosines of the m tokens that are present, or:
    hidden: NDArray[np.float32] | None = None,  # [n, width] rows that these are computed from
    n_threads: int = 1,
) -> NDArray[np.int32]:
    """Ascending indices of the visual tokens kept: native/choose/choose.h. Raises OptionError."""

def random_scores(n: int, seed: int) -> NDArray[np.float32]:
    """[n], in [0, 1): what score=random ranks by."""

def reduce(
    embeddings: NDArray[np.float32],  # [n, d]
    spec: str,  # the language of parse_reducer() (native/settings/reducer.h)
    *,
    grids: Sequence[tuple[int, int]] | None = None,  # (nx, ny) of every slice or frame; None: one row
    question: NDArray[np.float32] | None = None,  # [at most d], for cdpruner
    n_threads: int = 1,
) -> dict[str, Any]:
    """native/choose/reducers/reduce.h: ``embeddings`` [m, d]; ``place`` [m], ascending: the input whose position each
    output takes; ``centre`` [m, 3]: slice, row, column; ``member`` [n]: the output that each input went into, or -1;
    ``grids``: (nx, ny) of the outputs of each slice. Raises OptionError."""

def count_reduced(spec: str, grids: Sequence[tuple[int, int]]) -> int:
    """How many outputs :func:`reduce` gives for slices of (nx, ny). Raises OptionError."""

PRESETS: tuple[str, ...]
RECALL: float
MAX_CUTS: int
SCORES: tuple[str, ...]
SCORE_CHOICES: tuple[str, ...]  # with the numbers that can stand behind names
PICKS: tuple[str, ...]
PICK_CHOICES: tuple[str, ...]

def parse_setting(text: str) -> dict[str, Any]:
    """``fastv``, ``turbo``, ``reduce``: as the functions below. Raises OptionError."""

def parse_schedule(text: str) -> dict[str, Any] | None:
    """``preset`` (its name, if the text is nothing else, or None), ``cuts`` (the fields of a Cut each), ``recall``,
    ``cells``; None: "off". Raises OptionError."""

def check_cut(
    layer: str, drop: float, score: str | None, pick: str | None, weigh: bool | None, merge: bool | None
) -> dict[str, Any]:
    """The fields of a Cut, checked, as :func:`parse_schedule` gives them; None: not named, as where text leaves it out.
    Raises OptionError."""

def check_schedule(spec: str, n_layer: int) -> str:
    """Parse and validate a schedule for a model of n_layer layers; the same in full. Raises OptionError."""

def parse_turbo(text: str) -> dict[str, Any] | None:
    """The fields of a Turbo; None: "off". Raises OptionError."""

def parse_reducer(text: str) -> tuple[str, dict[str, Any]] | None:
    """A reducer's name and fields; None: "off". Raises OptionError."""

def check_reducer(spec: str) -> str:
    """Parse and validate a reducer; the same in full. Raises OptionError."""

def model_info(model_path: _Path) -> dict[str, Any]:
    """A GGUF's header, no weights: ``architecture``, ``description``, ``n_layer``, ``n_embd``, ``n_ctx_train``,
    ``n_params``, ``size_bytes``, ``unsupported_reason`` (None if it can be pruned), ``cut_layers`` (list: where a cut
    that ranks by attention can be), ``recurrent_layers`` (whether there are any beside attention), ``chat_template``."""

def gguf_header(path: _Path) -> dict[str, Any]:
    """What a GGUF file says before its data. ``metadata``: key to value (None for texts in arrays and arrays longer than
    4096); ``tensors``: name to (shape, rows last; ggml type name; bytes)."""

def encoder_matrices(projector: str, tensors: Collection[str]) -> list[str]:
    """Of an mmproj's tensors those that are only ever multiplied with: any type of weights will do."""

def encoder_sizes(projector: str, tensors: Collection[str]) -> tuple[bool, str, int] | None:
    """Whether every picture has the number of tokens that the header tells; the key, and its default, of how many
    patches a side become one token. None: nothing is known of the encoder. ``tensors``: the names in the file."""

def write_excerpt(parts: Sequence[_Path], n_layers: int, out: _Path) -> None:
    """Write a model of the first layers of another one, of one file or of all its parts: for measurements."""

def rewrite_gguf(
    source: _Path,
    target: _Path,
    *,
    tensors: Mapping[str, tuple[str, int, int]],  # by name: type, columns, rows; what is added is zeros
    keys: Mapping[str, int],  # metadata that is set, u32
    progress: Callable[[int, int], object] | None = None,  # (bytes done, bytes) of the tensors; may raise
) -> None:
    """Write a GGUF file with some of its float matrices and biases in another type, or larger: native/files/rewrite.h.

    Raises ModelError (the source), OSError (the target), and what ``progress`` raises."""

def product_seconds(type: str, n_in: int, n_out: int, n_rows: int, n_threads: int) -> float:
    """Of n_rows rows by a matrix of this type, on the CPU: native/products/speed.h."""

def usable_cores(root: str = "", cpus: Sequence[int] | None = None) -> int:
    """How many threads can compute without sharing a core: native/runner/cores.h. ``root``: of another system's /proc and
    /sys; ``cpus``: those that a process may run on there."""

def fit_layers(model_path: _Path, specs: list[str]) -> list[list[tuple[int, int]]]:
    """Of a GGUF file, of each schedule (empty: none): as :meth:`Engine.fit_layers`. Raises ModelError, OptionError."""

def vision_info(mmproj_path: _Path) -> dict[str, Any]:
    """An mmproj's header: ``projector``, ``image_size`` (pixels), ``patch_size``, ``n_layer``, ``visual_tokens`` (None
    where their number depends on the picture)."""

DEFAULT_N_CTX: int

class EngineOptions:
    """The keywords of :class:`Engine`, each with its default."""

    def __init__(self, **options: Any) -> None: ...  # TypeError: there is none of this name
    model_path: _Path
    mmproj_path: _Path | None  # None: text only
    n_slots: int  # requests at once
    n_ctx: int  # tokens of each; 0: what the model was trained for, at most DEFAULT_N_CTX
    n_batch: int
    n_ubatch: int  # most rows of prompts between two tokens of requests that generate
    n_threads: int  # 0: usable_cores()
    n_threads_batch: int  # of prompts and pictures; 0: n_threads
    n_gpu_layers: int  # -1: all
    flash_attn: str  # "auto", "on", "off"
    type_k: str  # ggml type name: "f16", "f32", "q8_0", ...
    type_v: str
    encoder_cache_bytes: int  # of encoder outputs kept for pictures that come again; 0: none
    checkpoint_bytes: int  # of states of recurrent layers that later prompts go back to; 0: none
    verbose: bool

class SamplingOptions:
    """The keywords of :meth:`Engine.start` and :meth:`Engine.prepare`, each with its default."""

    def __init__(self, **options: Any) -> None: ...  # TypeError: there is none of this name
    max_tokens: int  # -1: until the context is full
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    repeat_last_n: int
    frequency_penalty: float
    presence_penalty: float
    seed: int  # 0..2**32-1; 2**32-1: random
    grammar: str | None  # GBNF
    grammar_triggers: list[
        str
    ]  # expressions: it holds from what one of them finds; empty: from the beginning
    preserved: list[str]  # names of control tokens that are text of the answer
    logit_bias: list[tuple[int, float]]  # (token, what is added to its logit, from -1e9 to 1e9)
    ignore_eos: bool  # no token ends the answer
    skip_special_tokens: bool  # control tokens are no text; else they are spelt

class RunReport:
    """native/runner/options.h; what :class:`pyfastv.Report` has of the same names."""

    def __init__(self) -> None: ...
    def __getattr__(self, name: str) -> Any: ...

class EngineRequest:
    """What :meth:`Engine.prepare` gives to :meth:`Engine.start`, once."""

    @property
    def n_tokens(self) -> int:
        """Of its prompt, visual ones included. Before it is started."""

class Engine:
    """One model, its vision encoder and one context that ``n_slots`` requests share, each with a part of it.

    A slot keeps what it holds after its request: one whose prompt begins in the same way, pictures included, goes on
    from there, or from a copy. Any thread may call any method; all release the GIL while they compute or wait.

    Requests are computed in one of two ways: :meth:`prepare`, :meth:`start` and :meth:`step` are for one thread that
    computes for all; :meth:`prefill`, :meth:`start` and :meth:`next` for threads that wait each for its own. Where a
    ``request`` can be given it is the number of one, running or ended, whose slot no other has taken (else ClosedError);
    None: the newest.

    Raises the classes of :mod:`pyfastv.errors`; numbers out of range: OptionError; what ggml aborts for: ModelError while
    loading, DecodeError, OutOfMemoryError."""

    def __init__(
        self,
        *,
        progress: Callable[[float], object] | None = None,  # 0..1 while loading; an exception in it aborts
        **options: Any,  # of EngineOptions
    ) -> None: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def media_marker(self) -> str:
        """Stands for one picture in a prompt; random for each engine, so that no text can forge it."""
    @property
    def n_slots(self) -> int: ...
    @property
    def n_idle(self) -> int: ...
    @property
    def idle(self) -> bool:
        """No request runs."""
    @property
    def n_ctx(self) -> int:
        """Of each slot."""
    @property
    def n_layer(self) -> int: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def bos_token(self) -> str: ...
    @property
    def eos_token(self) -> str: ...
    @property
    def control_tokens(self) -> list[tuple[str, bool, bool]]:
        """Of the vocabulary, those that nobody means by typing them: name, and whether each takes the white space before
        and behind it."""
    @property
    def description(self) -> str: ...
    def set_fastv(self, spec: str) -> None:  # the language of pyfastv_parse() (native/include/pyfastv.h)
        """The schedule of requests that bring none (clears the context); empty: all visual tokens stay, in a context that
        is stock llama.cpp's. Raises OptionError (so it does while requests are computed), UnsupportedModelError,
        OutOfMemoryError."""
    def fits(self, spec: str) -> bool:
        """Can a request with this schedule (empty: none) run beside those that there are: do its cuts lie at the layers
        of the context's, with as many KV cells? Waits for nobody. Raises OptionError."""
    def fit(self, spec: str) -> None:
        """Where it does not fit, the context has its layers from now on, and is empty. :meth:`start` and :meth:`prefill`
        do so, too. Raises as :meth:`set_fastv` does."""
    def fit_layers(self, spec: str) -> list[tuple[int, int]]:
        """Of each cut the layer that a schedule asks for, and the one that it has to be at: the next where it can be, as
        pyfastv_fit_layers() finds it. Raises OptionError."""
    def set_turbo(
        self, spec: str
    ) -> None:  # the language of pyfastv_turbo_parse() (native/include/pyfastv_turbo.h)
        """Merge tokens in the vision encoder, for :meth:`embed`, :meth:`pixels`, and :meth:`prefill` where it is not told
        (clears the context); empty: none. Raises OptionError, UnsupportedModelError."""
    def set_reducer(self, spec: str) -> None:  # the language of parse_reducer() (native/settings/reducer.h)
        """Where :meth:`prefill` is not told; empty: none. Raises OptionError, UnsupportedModelError."""
    def check(self, turbo: str, reducer: str) -> None:
        """Are these settings of a request right for the model? Raises OptionError, UnsupportedModelError."""
    def prepare(
        self,
        prompt: str,  # one media_marker for each picture
        images: Sequence[NDArray[np.uint8]],  # each [height, width, 3], C-contiguous
        image_ids: Sequence[str],  # a hash of each one's pixels and size: the same picture has the same id
        add_bos: bool,  # add BOS if the model's vocabulary asks for it
        *,
        frames: Sequence[int] = (),  # of each image its number in its video, 0 for pictures; empty: all 0
        n_probs: int = 0,  # how many of the likeliest tokens the events name; 0: none
        turbo: str = "",  # the language of pyfastv_turbo_parse(); empty: none
        reducer: str = "",  # the language of parse_reducer() (native/settings/reducer.h); empty: none
        fastv: str | None = None,  # the language of pyfastv_parse(); empty: all tokens stay; None: as set
        answers: Sequence[
            tuple[int, int]
        ] = (),  # of earlier turns: begin and end, in bytes of the prompt, ascending
        literal: Sequence[
            tuple[int, int]
        ] = (),  # in such bytes: where names of control tokens and markers are text
        **sampling: Any,  # of SamplingOptions
    ) -> EngineRequest:
        """Tokens, prepared pictures and samplers of a request.

        One with pictures waits while the encoder runs with another Turbo. Raises ContextLengthError, ImageError,
        OptionError (a bad grammar, for one), UnsupportedModelError: all that is wrong with it."""
    def prepare_tokens(
        self,
        tokens: Sequence[int],  # as they are
        *,
        n_probs: int = 0,  # this and what follows: as of prepare()
        fastv: str | None = None,
        **sampling: Any,
    ) -> EngineRequest:
        """A request whose prompt is tokens. Raises as :meth:`prepare` does; OptionError: a number that is no token."""
    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """``add_special``: with the tokens that the vocabulary puts around a text; ``parse_special``: the spelling of a
        special token is that token. ContextLengthError: a text that is far longer than the context."""
    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Special tokens spelt. OptionError: a number that is no token."""
    @overload
    def start(self, request: EngineRequest) -> int:
        """Give a prepared request an idle slot; its number. :meth:`step` computes. OptionError: none is idle; started
        already."""
    @overload
    def start(
        self,
        request: int | None = None,
        *,
        n_probs: int = 0,  # as of prepare()
        **sampling: Any,  # of SamplingOptions
    ) -> None:
        """How a request of :meth:`prefill` goes on."""
    def step(self) -> list[dict[str, Any]]:
        """One token of every prepared request that generates, then a piece of a prompt: at most n_ubatch rows of text, or
        a picture through the encoder or the first layers. Raises nothing that one request alone has caused.

        Returns what happened, one dict each: ``id``; ``token`` (None: only an end) and its ``bytes``; with n_probs
        ``logprob`` (natural log of the softmax of the raw logits) and ``top`` (list of (token, bytes, logprob)); and of
        a request that has ended ``finish`` ("stop", "length", "cancelled") or ``error`` (an exception), ``report`` as
        :meth:`report` (of the KV cache: all slots), ``kept`` (a list of :meth:`kept` of every cut),
        ``grids`` as :meth:`grids`, and ``pictures`` as :meth:`pictures`."""
    def reading(self) -> list[tuple[int, int, int, int]]:
        """Of each request of :meth:`start` whose prompt is not all read: its number; how many tokens are, those that were
        in the slot included; how many there are; how many were in the slot."""
    def prefill(
        self,
        prompt: str,  # this and what follows: as of prepare()
        images: Sequence[NDArray[np.uint8]],
        image_ids: Sequence[str],
        progress: Callable[[int, int], object] | None,  # (prompt tokens done, prompt tokens)
        add_bos: bool,
        reserve: int,  # tokens that have to fit behind the prompt, else ContextLengthError
        frames: Sequence[int] = (),
        turbo: str | None = None,  # empty: none; None: as set
        reducer: str | None = None,
        started: Callable[[int], object] | None = None,  # called with the number, before anything is computed
        fastv: str | None = None,  # as of prepare()
        answers: Sequence[tuple[int, int]] = (),
        literal: Sequence[tuple[int, int]] = (),
    ) -> int:
        """Tokenise, encode and decode; afterwards logits() and start() work. The request's number.

        What a slot holds of the prompt's beginning, pictures included if they were chosen from by the same
        schedule, is not evaluated again. A question that follows the same picture in place of an earlier one
        chooses anew; one that follows in the same conversation recalls; so it is with those of earlier turns, where
        the prompt says which they are. The encoder's output for a picture comes from the cache if it is there. Where
        all slots are taken, the oldest request that no thread waits for is ended. ClosedError: it was cancelled."""
    def next(self, request: int | None = None) -> tuple[int, bytes] | None:
        """The next token and its bytes (a piece of UTF-8, possibly cut inside a character); None when finished."""
    def next_with_probs(
        self, request: int | None = None
    ) -> tuple[int, bytes, float, list[tuple[int, bytes, float]]] | None:
        """As :meth:`next`, then ``logprob`` and ``top`` as :meth:`step` tells them, if n_probs were asked for."""
    def save(self, request: int) -> NDArray[np.uint8]:
        """What the slot of a request of :meth:`prefill` holds: text, pictures, what was chosen; a request that nobody
        waits for ends. ClosedError: its slot is another's."""
    def restore(self, state: NDArray[np.uint8]) -> int:
        """Puts it into an idle slot, from which requests go on that begin in the same way; a number for :meth:`save`.
        Where all slots are taken, the oldest request that no thread waits for is ended. OptionError: it is no state,
        or of a context of another kind (types, layers of the cuts, room)."""
    @property
    def finish_reason(self) -> str | None:
        """:meth:`reason` of the newest request."""
    def reason(self, request: int | None = None) -> str | None:
        """Once next() returned None: "stop" (end-of-generation token), "length" (max_tokens or context full) or
        "cancelled"."""
    def feed(self, token: int, request: int | None = None) -> None:
        """Evaluate one token (for tests and benchmarks; generation uses start() and next())."""
    def logits(self, request: int | None = None) -> NDArray[np.float32]:
        """[n_vocab], of the last evaluated token. OptionError: another request was computed since."""
    def cancel(self, id: int) -> None:
        """The request ends with the next step, its computation at once. An unknown number is ignored."""
    def reset(self) -> None:
        """Forget the context and every request (not the model)."""
    def embed(self, image: NDArray[np.uint8], image_id: str) -> list[NDArray[np.float32]]:
        """What the encoder and the projector make of a picture: [n, d] for each slice. The context stays."""
    def pixels(self, picture: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """What the vision encoder sees of a picture, slice by slice: each [height, width, 3]. Evaluates nothing."""
    def places(self, request: int | None = None) -> NDArray[np.int32]:
        """Of every visual token in the slot the patch, counted in its slice, whose position it has."""
    def kept(self, cut: int, request: int | None = None) -> NDArray[np.int32]:
        """Ascending indices, over all pictures of the slot, of the visual tokens that are in the stage behind a cut
        (0 is the first; negative counts from the end), recalled ones included."""
    def scores(self, cut: int, request: int | None = None) -> NDArray[np.float32]:
        """Score of every visual token in the last choice at a cut."""
    def grids(self, request: int | None = None) -> list[list[tuple[int, int]]]:
        """(nx, ny) of the slices of every picture in the slot."""
    def pictures(
        self, request: int | None = None
    ) -> list[list[tuple[list[tuple[int, int]], NDArray[np.int32]]]]:
        """Of every picture in the slot its slices, (patches, places): (nx, ny) of the grids that the encoder sees, and of
        every visual token the patch, counted in its slice, whose position it has."""
    def report(self, request: int | None = None) -> RunReport:
        """Of a request, and of the KV cache of all."""

def regex_split(text: str, expression: str) -> list[int] | None:
    """Lengths of the expression's matches in a text and of what lies between, in order: native/regex/split.h, as
    pre-tokenizers use it. None: the expression has something that it does not take."""

def json_schema_to_gbnf(schema: str) -> str:
    """llama.cpp's grammar for a JSON schema (JSON text; depth and strings bounded by the caller). Raises OptionError."""

class ToolFormat:
    """How a model writes calls of a request's tools (native/grammar/tool_format.h)."""

    @property
    def grammar(self) -> str: ...  # of calls alone; empty: there is none
    @property
    def triggers(self) -> list[str]: ...  # expressions that find what begins a call
    @property
    def preserved(self) -> list[str]: ...  # tokens that are part of the form
    @property
    def stops(self) -> list[str]: ...  # texts that end an answer
    def parse(self, text: str) -> tuple[str, str, list[tuple[str, str, str]]]:
        """Of an answer, or its beginning: content, thought, and the calls (id, name, arguments in JSON). Raises
        DecodeError: it is not as this form has it."""

class ToolTemplate:
    """A chat template, as llama.cpp's chat library reads it, within limits on time, memory and depth."""

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None: ...  # ModelError
    @property
    def parallel(self) -> bool: ...  # it takes several calls in one answer
    def format(
        self,
        tools: str,  # JSON; depth and strings bounded by the caller
        required: bool,  # the answer is one call, or several
        parallel: bool,  # several
        thinks: bool,
        variables: str,  # JSON, of the template
        thought_tags: Sequence[str],  # what begins a thought that the caller takes out of the answer
    ) -> ToolFormat | None:
        """None: the template knows no tools, or the library not its form. Raises ModelError."""

def generic_tool_format(tools: str, required: bool, parallel: bool) -> ToolFormat:
    """``{"tool_calls": [{"name": ..., "arguments": ...}]}``. Raises OptionError."""
