"""llama.cpp through ctypes: another implementation of the same model and of control vectors.

The library is the extension module of the package xllamacpp, opened for the C API that it exports
and never imported. What is done with a control vector file follows common_control_vector_load and
common_init_from_params of llama.cpp: `direction.N` becomes row N - 1 of one array that begins with
layer 1, and block N, 0-based, adds it to its output. It knows nothing of mlxsteer.

Shapes: tokens `[T]`, logits `[T, V]`, a control vector `[n, D]` for the layers 1 to n, float32.
"""

import ctypes as c
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

Array = np.ndarray[Any, np.dtype[np.float32]]

F32 = 0  # GGML_TYPE_F32
SPARE = ("spare", c.c_char * 512)  # llama.h may grow at the end; too much memory does no harm


class _ModelParams(c.Structure):
    """The part of llama_model_params that is set here."""

    _fields_ = (
        ("pointers", c.c_void_p * 2),
        ("n_gpu_layers", c.c_int32),
        ("kinds", c.c_int * 4),
        ("more_pointers", c.c_void_p * 4),
        ("vocab_only", c.c_bool),
        SPARE,
    )


class _ContextParams(c.Structure):
    """The part of llama_context_params up to the last field that is set here."""

    _fields_ = (
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("counts", c.c_uint32 * 4),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("kinds", c.c_int * 4),
        ("flash_attn_type", c.c_int),
        ("rope", c.c_float * 6),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p * 2),
        ("type_k", c.c_int),
        ("type_v", c.c_int),
        ("moe_cache_size", c.c_size_t),
        ("abort", c.c_void_p * 2),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        SPARE,
    )


class _Batch(c.Structure):
    """llama_batch; without positions and sequences tokens continue sequence 0."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd_pos_n_seq_id_seq_id", c.c_void_p * 4),
        ("logits", c.POINTER(c.c_int8)),
    )


class _GgufParams(c.Structure):
    """gguf_init_params."""

    _fields_ = (("no_alloc", c.c_bool), ("context", c.POINTER(c.c_void_p)))


Log = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)


SILENT = Log(lambda level, text, data: None)  # a module's name, since llama.cpp keeps the pointer

_POINTER, _INT, _LONG, _TEXT = c.c_void_p, c.c_int32, c.c_int64, c.c_char_p
_FLOATS = c.POINTER(c.c_float)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_free": (None, [_POINTER]),
    "ggml_get_data_f32": (_FLOATS, [_POINTER]),
    "ggml_get_tensor": (_POINTER, [_POINTER, _TEXT]),
    "ggml_n_dims": (_INT, [_POINTER]),
    "ggml_nelements": (_LONG, [_POINTER]),
    "gguf_free": (None, [_POINTER]),
    "gguf_get_data_offset": (c.c_size_t, [_POINTER]),
    "gguf_get_n_tensors": (_LONG, [_POINTER]),
    "gguf_get_tensor_name": (_TEXT, [_POINTER, _LONG]),
    "gguf_get_tensor_offset": (c.c_size_t, [_POINTER, _LONG]),
    "gguf_get_tensor_size": (c.c_size_t, [_POINTER, _LONG]),
    "gguf_get_tensor_type": (c.c_int, [_POINTER, _LONG]),
    "gguf_init_from_file": (_POINTER, [_TEXT, _GgufParams]),
    "gguf_set_tensor_type": (None, [_POINTER, _TEXT, c.c_int]),
    "gguf_write_to_file": (c.c_bool, [_POINTER, _TEXT, c.c_bool]),
    "llama_backend_init": (None, []),
    "llama_context_default_params": (_ContextParams, []),
    "llama_decode": (_INT, [_POINTER, _Batch]),
    "llama_free": (None, [_POINTER]),
    "llama_get_logits": (_FLOATS, [_POINTER]),
    "llama_init_from_model": (_POINTER, [_POINTER, _ContextParams]),
    "llama_log_set": (None, [Log, _POINTER]),
    "llama_model_default_params": (_ModelParams, []),
    "llama_model_free": (None, [_POINTER]),
    "llama_model_get_vocab": (_POINTER, [_POINTER]),
    "llama_model_load_from_file": (_POINTER, [_TEXT, _ModelParams]),
    "llama_model_n_embd": (_INT, [_POINTER]),
    "llama_model_n_layer": (_INT, [_POINTER]),
    "llama_set_adapter_cvec": (_INT, [_POINTER, _FLOATS, c.c_size_t, _INT, _INT, _INT]),
    "llama_tokenize": (
        _INT,
        [_POINTER, _TEXT, _INT, c.POINTER(c.c_int32), _INT, c.c_bool, c.c_bool],
    ),
    "llama_vocab_n_tokens": (_INT, [_POINTER]),
}


@functools.cache
def library() -> c.CDLL:
    """Open llama.cpp; OSError if it is not installed or cannot run here."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = spec.submodule_search_locations if spec is not None else None
    files = [file for folder in folders or [] for file in Path(folder).glob("xllamacpp*.so")]
    if not files:
        raise OSError("xllamacpp is not installed")
    library = c.CDLL(str(files[0]))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(SILENT, None)
    library.llama_backend_init()
    known = library.llama_context_default_params()
    fields = ("n_ctx", "n_batch", "n_threads", "flash_attn_type", "type_k", "type_v", "op_offload")
    found = [getattr(known, field) for field in fields]
    # These are llama.cpp's defaults: anything else is another layout of the structure.
    assert found == [512, 2048, 4, -1, 1, 1, True], f"llama.h has changed: {found}"
    return library


class Llama:
    """A model in llama.cpp, on the CPU, computing in float32 as far as its kernels do."""

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        self._lib = library()
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.vocab_only = vocab_only
        self._model = self._lib.llama_model_load_from_file(bytes(path), params)
        assert self._model, f"llama.cpp does not load {path}"
        self.n_layers = self._lib.llama_model_n_layer(self._model)
        self.width = self._lib.llama_model_n_embd(self._model)
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary = self._lib.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        self._lib.llama_model_free(self._model)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return token ids; `special` adds what the vocabulary asks for at the ends."""
        raw = text.encode()
        room = (c.c_int32 * (len(raw) + 16))()
        n = self._lib.llama_tokenize(self._vocab, raw, len(raw), room, len(room), special, True)
        return list(room[:n])

    def logits(self, tokens: Sequence[int], control: Array | None = None) -> Array:
        """One pass over `tokens`, steered by a control vector or not: `[T, V]`."""
        with self._context(len(tokens), control) as context:
            return self._decode(context, tokens)

    def greedy(self, tokens: Sequence[int], count: int, control: Array | None = None) -> list[int]:
        """Write `count` tokens, each the likeliest, one at a time through the KV cache."""
        written: list[int] = []
        with self._context(len(tokens) + count, control) as context:
            while len(written) < count:
                rows = self._decode(context, written[-1:] or tokens)
                written.append(int(rows[-1].argmax()))
        return written

    @contextmanager
    def _context(self, length: int, control: Array | None) -> Iterator[int]:
        """A context of its own for every text: one that is used again may keep an old graph."""
        params = self._lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = length
        # Two threads wait for each other in a loop, 20 times slower when another program is busy.
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = F32  # the cache is float16 by default
        params.flash_attn_type = 0
        params.offload_kqv = params.op_offload = False
        context = self._lib.llama_init_from_model(self._model, params)
        assert context
        try:
            if control is not None:
                first, last = 1, self.n_layers
                rows = np.ascontiguousarray(control)
                pointer = rows.ctypes.data_as(_FLOATS)
                failed = self._lib.llama_set_adapter_cvec(
                    context, pointer, rows.size, rows.shape[1], first, last
                )
                assert not failed
            yield context
        finally:
            self._lib.llama_free(context)

    def _decode(self, context: int, tokens: Sequence[int]) -> Array:
        count = len(tokens)
        wanted = (c.c_int8 * count)(*[1] * count)
        batch = _Batch(n_tokens=count, token=(c.c_int32 * count)(*tokens), logits=wanted)
        assert self._lib.llama_decode(context, batch) == 0
        rows = self._lib.llama_get_logits(context)
        return np.ctypeslib.as_array(rows, (count, self.vocabulary)).copy()


def control_vector(path: Path, strength: float = 1.0) -> Array:
    """Read a control vector file as llama.cpp's `--control-vector-scaled PATH STRENGTH` does."""
    lib, context = library(), c.c_void_p()
    file = lib.gguf_init_from_file(bytes(path), _GgufParams(False, c.pointer(context)))
    assert file, f"llama.cpp does not read {path}"
    try:
        rows: dict[int, Array] = {}
        for i in range(lib.gguf_get_n_tensors(file)):
            name = lib.gguf_get_tensor_name(file, i)
            word, _, layer = name.decode().partition(".")
            tensor = lib.ggml_get_tensor(context, name)
            assert word == "direction"
            assert int(layer) > 0
            assert lib.gguf_get_tensor_type(file, i) == F32
            assert lib.ggml_n_dims(tensor) == 1
            width = lib.ggml_nelements(tensor)
            row = np.ctypeslib.as_array(lib.ggml_get_data_f32(tensor), (width,))
            rows[int(layer)] = np.float32(strength) * row
    finally:
        lib.gguf_free(file)
        lib.ggml_free(context)
    zero = np.zeros_like(next(iter(rows.values())))
    return np.stack([rows.get(layer, zero) for layer in range(1, max(rows) + 1)])


def write_float32(path: Path, target: Path) -> None:
    """Write the same model with F32 weights, decoded by llama.cpp's Python package."""
    lib = library()
    file = lib.gguf_init_from_file(bytes(path), _GgufParams(True, None))
    assert file
    start = lib.gguf_get_data_offset(file)
    tensors = [
        (
            lib.gguf_get_tensor_name(file, i),
            GGMLQuantizationType(lib.gguf_get_tensor_type(file, i)),
            start + lib.gguf_get_tensor_offset(file, i),
            lib.gguf_get_tensor_size(file, i),
        )
        for i in range(lib.gguf_get_n_tensors(file))
    ]
    for name, *_ in tensors:
        lib.gguf_set_tensor_type(file, name, F32)
    assert lib.gguf_write_to_file(file, bytes(target), True)
    lib.gguf_free(file)
    with target.open("ab") as out:  # the tensors follow in the same order, all multiples of 32
        for _, kind, offset, size in tensors:
            packed = np.memmap(path, np.uint8, "r", offset, (size,))
            dequantize(packed, kind).astype("<f4").tofile(out)
