"""The file of a vector: the same bytes everywhere, and nothing wrong gets in."""

import json
import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hostile import vectors
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open

from mlxsteer.errors import MlxsteerError
from mlxsteer.interop import load_vector
from mlxsteer.vector import ModelRef, Vector, read_vector
from mlxsteer.vector_file import whole_file

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "tiny.safetensors"
FEATURE = HERE / "golden" / "feature.safetensors"
GOLDEN_SHA256 = "8224f0773a5fff69b47154ec7be9da125043b7b7581e86d10e7167757138a16e"


def tiny() -> Vector:
    """The vector of the golden file, as `vectors.record()` and `vectors.tensors()` describe it."""
    fields = vectors.record(format_version=..., layers=..., model=ModelRef(**vectors.MODEL))
    arrays = vectors.tensors()
    return Vector(
        layers=(1, 2),
        directions=np.stack([arrays["direction.1"], arrays["direction.2"]]),
        scales=arrays["scale"],
        **fields,
    )


def feature() -> Vector:
    """The vector of the golden file of an SAE feature: it is read by an encoder of its own."""
    arrays = vectors.feature()
    return tiny().replace(
        op="project",
        encoders=np.stack([arrays["encoder.1"], arrays["encoder.2"]]),
        encoder_biases=arrays["encoder_bias"],
    )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vectors") / "any.safetensors"


def refusal(path: Path) -> str:
    """The line with which reading the file is refused."""
    with pytest.raises(MlxsteerError) as caught:
        read_vector(path)
    assert caught.value.exit_code == 1
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400 + len(str(path))
    return str(caught.value)


def test_golden_bytes(tmp_path: Path) -> None:
    tiny().save(tmp_path / "tiny.safetensors")
    assert (tmp_path / "tiny.safetensors").read_bytes() == GOLDEN.read_bytes()
    assert tiny().content_sha256 == GOLDEN_SHA256


def test_golden_bytes_of_a_feature(tmp_path: Path, scratch: Path) -> None:
    feature().save(tmp_path / "feature.safetensors")
    assert (tmp_path / "feature.safetensors").read_bytes() == FEATURE.read_bytes()
    fields = vectors.record(op="project", evidence={}, calibration=None)
    scratch.write_bytes(vectors.build(fields, vectors.feature()))
    assert read_vector(FEATURE) == read_vector(scratch) == feature()
    assert feature().content_sha256 == vectors.signed(fields, vectors.feature())["content_sha256"]
    found = read_vector(FEATURE)
    assert found.encoders is not None
    np.testing.assert_array_equal(found.encoders[0], np.array([0.5, 0, 2, 0], np.float32))
    np.testing.assert_array_equal(found.encoder_biases, np.array([-0.5, 0.25], np.float32))


def test_golden_file_reads_back() -> None:
    vector = read_vector(GOLDEN)
    assert vector == tiny()
    assert vector.record() == vectors.signed(vectors.record(), vectors.tensors())
    assert vector.positive == "talks like a pirate ☠"
    assert vector.model == ModelRef(**vectors.MODEL)
    np.testing.assert_array_equal(vector.directions[0], np.array([0.6, 0, -0.8, 0], np.float32))
    np.testing.assert_array_equal(vector.scales, np.array([1.5, 0.25], np.float32))


def test_the_file_is_what_the_description_says() -> None:
    """Read without our code: safetensors, one canonical JSON string, the digest."""
    with safe_open(GOLDEN, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert sorted(arrays) == ["direction.1", "direction.2", "scale"]
    assert list(metadata) == ["mlxsteer"]
    record = json.loads(metadata["mlxsteer"])
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert metadata["mlxsteer"] == text
    said = record.pop("content_sha256")
    assert vectors.signed(record, arrays)["content_sha256"] == said


def test_the_order_of_making_leaves_no_trace(tmp_path: Path) -> None:
    backwards = {key: tiny().record()["evidence"][key] for key in ("loops", "kl")}
    assert list(backwards) != list(tiny().record()["evidence"])
    tiny().replace(evidence=backwards).save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == GOLDEN.read_bytes()


def test_a_foreign_writer_is_read(scratch: Path) -> None:
    scratch.write_bytes(vectors.build())  # other order, escapes and padding than ours
    assert vectors.build() != GOLDEN.read_bytes()
    assert read_vector(scratch) == tiny()


@pytest.mark.parametrize("name", vectors.CASES)
def test_hostile_file_is_refused_by_name(scratch: Path, name: str) -> None:
    make, words = vectors.CASES[name]
    scratch.write_bytes(make())
    line = refusal(scratch)
    assert line.startswith(f"{scratch}: ")
    assert [word for word in words if word not in line] == []
    with pytest.raises(MlxsteerError):
        load_vector(scratch)


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("vector_pickle.pt", "pickle"),
        ("vector_torch.pt", "zip"),
        ("vector_nan.safetensors", "NaN"),
        ("vector_altered.safetensors", "changed after it was written"),
        ("vector_header_2gb.safetensors", "2147483648"),
    ],
)
def test_hostile_bytes_are_refused_by_name(file: str, word: str) -> None:
    assert word in refusal(HERE / "hostile" / file)
    with pytest.raises(MlxsteerError, match=word):
        load_vector(HERE / "hostile" / file)


@pytest.mark.parametrize("what", ["absent", "folder"])
def test_no_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "absent.safetensors" if what == "absent" else tmp_path
    assert "cannot be read" in refusal(path)
    with pytest.raises(MlxsteerError, match="cannot be read"):
        load_vector(path)


def survives(path: Path, data: bytes) -> bool:
    """Whether the bytes are refused, or read back as the golden vector."""
    path.write_bytes(data)
    try:
        return read_vector(path) == tiny()
    except MlxsteerError as error:
        return len(str(error).splitlines()) == 1


def test_no_flipped_byte_goes_unseen(scratch: Path) -> None:
    golden = GOLDEN.read_bytes()
    for at in range(len(golden)):
        flipped = golden[at] ^ 1 << at % 8
        assert survives(scratch, golden[:at] + bytes([flipped]) + golden[at + 1 :]), at


@given(at=st.integers(0, GOLDEN.stat().st_size - 1), byte=st.integers(0, 255))
def test_no_changed_byte_goes_unseen(scratch: Path, at: int, byte: int) -> None:
    golden = GOLDEN.read_bytes()
    assert survives(scratch, golden[:at] + bytes([byte]) + golden[at + 1 :])


def test_a_changed_vector_would_be_seen(scratch: Path) -> None:
    """The twin: `survives` is false for a file that reads as something else."""
    assert not survives(scratch, vectors.build(vectors.record(name="other")))


@given(cut=st.integers(0, GOLDEN.stat().st_size - 1))
def test_every_truncation_is_refused(scratch: Path, cut: int) -> None:
    scratch.write_bytes(GOLDEN.read_bytes()[:cut])
    refusal(scratch)


@given(data=st.binary(max_size=200))
@example(data=struct.pack("<Q", 8) + b"{}      ")
@example(data=struct.pack("<Q", 8) + b"{      }")
def test_random_bytes_are_refused(scratch: Path, data: bytes) -> None:
    scratch.write_bytes(data)
    refusal(scratch)
    with pytest.raises(MlxsteerError):
        load_vector(scratch)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(vectors.record())), value=JSON)
def test_any_field_is_refused_or_kept(scratch: Path, key: str, value: object) -> None:
    """Hash right, one field anything: refused in one line, or exactly what was written."""
    scratch.write_bytes(vectors.build(vectors.record(**{key: value})))
    try:
        record = read_vector(scratch).record()
    except MlxsteerError:
        refusal(scratch)
        return
    assert record[key] == value
    said = record.pop("content_sha256")
    assert vectors.signed(record, vectors.tensors())["content_sha256"] == said


@given(key=st.sampled_from(["dtype", "shape", "data_offsets"]), value=JSON)
def test_any_layout_is_refused(scratch: Path, key: str, value: object) -> None:
    entries = vectors.table(vectors.tensors())
    if value != entries["scale"][key]:
        entries["scale"][key] = value
        scratch.write_bytes(vectors.build(entries=entries))
        refusal(scratch)


# Writing


def test_a_failed_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_seen_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".safetensors"
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    places = ("none/a.safetensors", "file/a.safetensors", "folder.safetensors")
    for path in (tmp_path / place for place in places):
        with pytest.raises(MlxsteerError, match=f"^{path} cannot be written: .*; choose another"):
            tiny().save(path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.safetensors"]


@contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 1 kB meanwhile, be it the one that the tests report to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MlxsteerError, match="cannot be written"), small_disk():
        tiny().save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
