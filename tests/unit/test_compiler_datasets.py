"""The dataset contract: what is accepted, and what the errors say."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.data import datasets
from compiler.data.datasets import Dataset
from compiler.data.samples import Samples
from compiler.errors import DatasetError
from compiler.tensors import Array, spec
from fleet.ids import Digest

PICTURE = spec("picture", np.dtype(np.float32), (-1, 3, 4))
ONE = spec("one", np.dtype(np.float32), (1, 5))
STATE = spec("state", np.dtype(np.float32), (2, -1, 6))
RATE = spec("rate", np.dtype(np.int64), ())
ALL = (PICTURE, ONE, STATE, RATE)


def good(samples: int = 4) -> dict[str, Array]:
    return {
        "picture": np.zeros((samples, 3, 4), np.float32),
        "one": np.zeros((samples, 5), np.float32),
        "state": np.zeros((samples, 2, 1, 6), np.float32),
        "rate": np.full(samples, 16000, np.int64),
    }


def load(folder: Path, arrays: dict[str, Array]) -> Dataset:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return datasets.load(path, ALL)


def test_one_sample_has_the_shape_that_the_model_takes(tmp_path: Path) -> None:
    """A dynamic or single first dimension is the batch; any other input gets the sample whole."""
    feed = load(tmp_path, good()).feed(1)
    assert {name: x.shape for name, x in feed.items()} == {
        "picture": (1, 3, 4),
        "one": (1, 5),
        "state": (2, 1, 6),
        "rate": (),
    }
    assert all(isinstance(x, np.ndarray) for x in feed.values())


@pytest.mark.parametrize(
    ("name", "array", "expected", "got"),
    [
        ("picture", None, "an array named 'picture'", "one, rate, state"),
        ("picture", np.zeros((4, 3, 5), np.float32), "shape [N, 3, 4]", "[4, 3, 5]"),
        ("picture", np.zeros((4, 12), np.float32), "shape [N, 3, 4]", "[4, 12]"),
        ("state", np.zeros((4, 3, 1, 6), np.float32), "shape [N, 2, ?, 6]", "[4, 3, 1, 6]"),
        ("picture", np.zeros((4, 3, 4), np.float64), "type float32", "float64"),
        ("picture", np.zeros((3, 3, 4), np.float32), "as many samples", "picture: 3"),
        ("one", np.full((4, 5), np.nan, np.float32), "finite", "NaN"),
        ("labels", np.zeros(3, np.int64), "4, one per sample", "3"),
        ("labels", np.zeros(4, np.float32), "integers", "float32"),
        ("labels", np.full(4, -1), "from 0", "-1"),
        ("labels", np.full(4, 2**63, np.uint64), "from 0", "9223372036854775808"),
    ],
)
def test_an_error_says_expected_and_got(
    tmp_path: Path, name: str, array: Array | None, expected: str, got: str
) -> None:
    arrays = good()
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    with pytest.raises(DatasetError) as error:
        load(tmp_path, arrays)
    assert expected in str(error.value)
    assert got in str(error.value).partition("got")[2]


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "0 bytes"), (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"), (b"junk", "npz")],
)
def test_what_is_no_archive_is_named(tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=word):
        datasets.load(path, ALL)


def test_a_member_that_is_no_array_is_named(tmp_path: Path) -> None:
    """Numpy hands out its bytes, as if they were an array."""
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("picture", b"hello")
    with pytest.raises(DatasetError, match="'picture' is none"):
        datasets.load(path, ALL)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compression_than_numpys_is_refused(tmp_path: Path, method: int) -> None:
    """A damaged stream of such a method raises errors that belong to nobody."""
    path, body = tmp_path / "data.npz", io.BytesIO()
    np.save(body, good()["picture"])
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("picture.npy", body.getvalue())
    with pytest.raises(DatasetError, match=f"got the compression method {method}"):
        datasets.load(path, ALL)


def test_a_pipe_and_a_folder_are_no_data(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for for ever."""
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(DatasetError, match="expected a file; got"):
            datasets.load(path, ALL)


def test_no_samples_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least one sample"):
        load(tmp_path, good(0))


def test_no_data_is_an_error_that_says_how_to_make_some() -> None:
    with pytest.raises(DatasetError) as error:
        datasets.named("calibration", "", ALL)
    assert "--calibration: expected" in str(error.value)
    assert "numpy.savez('calibration.npz', picture=…, one=…" in str(error.value)
    assert "state float32 [N, 2, ?, 6]" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["stored", "compressed", "fortran"])
def test_samples_that_stay_on_disk_are_those_of_the_file(tmp_path: Path, form: str) -> None:
    """However the archive holds them, and after the file's name is gone."""
    rng = np.random.default_rng(0)
    arrays = {**good(50), "picture": rng.normal(size=(50, 3, 4)).astype(np.float32)}
    if form == "fortran":
        arrays["picture"] = np.asfortranarray(arrays["picture"])
    path = tmp_path / "data.npz"
    (np.savez_compressed if form == "compressed" else np.savez)(path, **arrays)
    data = datasets.load(path, ALL)
    path.unlink()
    rows = np.array([7, 8, 9, 3, 49])
    np.testing.assert_array_equal(data.take(rows).arrays()["picture"], arrays["picture"][rows])
    np.testing.assert_array_equal(data.feed(49)["picture"][0], arrays["picture"][49])
    np.testing.assert_array_equal(data.inputs["picture"][:], arrays["picture"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_data(tmp_path: Path, save: Callable[..., None]) -> None:
    """120 MB of samples are read, checked and gone through in a fraction of that."""
    path = tmp_path / "data.npz"
    tensor = spec("x", np.dtype(np.float32), (-1, 250_000))
    save(path, x=np.ones((120, 250_000), np.float32))
    tracemalloc.start()
    try:
        data = datasets.load(path, (tensor,))
        last = data.feed(119)["x"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last[0, 5] == 1
    assert (len(data), data.facts["x"].high) == (120, 1)
    assert peak < 40 * 1024**2


def test_a_flipped_bit_in_the_archive_is_found(tmp_path: Path) -> None:
    """A bad disk: the archive's checksum tells, for stored members too."""
    path = tmp_path / "data.npz"
    np.savez(path, **{**good(), "picture": np.ones((4, 3, 4), np.float32)})
    data = bytearray(path.read_bytes())
    data[data.index(np.ones(4, np.float32).tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="CRC"):
        datasets.load(path, ALL)


def test_a_member_that_is_cut_short_is_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    np.save(whole, np.ones((4, 3, 4), np.float32))
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("picture.npy", whole.getvalue()[:-8])
    with pytest.raises(DatasetError, match="'picture': expected 192 bytes; got 184"):
        datasets.load(path, ALL)


def test_a_pickled_array_is_never_opened(tmp_path: Path) -> None:
    """An object array runs code when it is unpickled."""
    with pytest.raises(DatasetError):
        load(tmp_path, {**good(), "one": np.array([{"x": 1}] * 4, dtype=object)})


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=80))
def test_the_halves_share_no_sample_and_have_the_same_mix(labels: list[int]) -> None:
    count = len(labels)
    data = Dataset(
        tensors=(RATE,),
        inputs={"rate": Samples.of(np.arange(count))},
        labels=np.array(labels, np.int64),
        digest=Digest.of(b""),
    )
    one, other = datasets.halves(data)
    rows = [set(x.inputs["rate"][:].tolist()) for x in (one, other)]
    assert rows[0] | rows[1] == set(range(count))
    assert not rows[0] & rows[1]
    assert abs(len(one) - len(other)) <= 1
    for label in range(5):
        mix = [0 if x.labels is None else int((x.labels == label).sum()) for x in (one, other)]
        assert abs(mix[0] - mix[1]) <= 1


@settings(max_examples=60)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_never_crash(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("random") / "data.npz"
    path.write_bytes(data)
    with pytest.raises(DatasetError):
        datasets.load(path, ALL)
