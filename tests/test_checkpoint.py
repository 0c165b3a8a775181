"""A checkpoint that is damaged, foreign or hostile is not used, and said in a note; it never ends a training."""

import hashlib
import io
import json
import os
import pickle
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
from conftest import NO_FILES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.records import checkpoint
from pipeline.records.checkpoint import Checkpoint, DamagedError
from pipeline.records.record import Training

fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FINGERPRINT = {"recipe": "custom", "learning_rate": 0.1, "comparable": True, "code": "1a2b"}
TRAINING = {
    "record_id": "0" * 32,
    "run": "custom-0",
    "status": "running",
    "recipe": "custom",
    "model": "custom",
    "seed": 0,
    "params": {"epochs": 9},
    "comparable": True,
    "started_ms": 1,
    "ended_ms": None,
    "epochs": [],
    "environment": {},
}
VALUES = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(3, np.int64)]


def at(epoch, fingerprint=FINGERPRINT):
    figures = {"loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
    return Checkpoint(
        fingerprint, Training(**TRAINING), [{"epoch": number, **figures} for number in range(1, epoch + 1)], VALUES
    )


def signed(body):
    """A file whose checksum is right, whatever is in it."""
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def npz(content=None, method=zipfile.ZIP_STORED, **members):
    """An archive of a header and of members: arrays, or bytes as they are."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", method) as target:
        header = json.dumps(HEADER if content is None else content).encode()
        for name, member in {"header": np.frombuffer(header, np.uint8), **members}.items():
            array = io.BytesIO()
            if isinstance(member, np.ndarray):
                np.lib.format.write_array(array, member)
            target.writestr(f"{name}.npy", array.getvalue() or member)
    return body.getvalue()


def npy(shape, head=b"'descr': '<f4', 'fortran_order': False, 'shape': "):
    """The start of an array that claims a shape, and no numbers."""
    text = b"{" + head + shape.encode() + b"}\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil",))


def objects():
    array = io.BytesIO()
    np.lib.format.write_array(array, np.array([Evil()], object), allow_pickle=True)
    return array.getvalue()


HEADER = {"fingerprint": FINGERPRINT, "training": TRAINING, "history": at(2).history}
HOSTILE = {
    "empty": b"",
    "only a digest": b"0" * 64,
    "zeros": bytes(10_000),
    "text": b"not a checkpoint",
    "no archive": signed(b"not an archive"),
    "nothing signed": signed(b""),
    "a pickle": signed(pickle.dumps(Evil())),
    "an array by itself": signed(npy("()") + bytes(4)),
    "pickled objects": signed(npz(a=objects())),
    "no header": signed(npz().replace(b"header.npy", b"headex.npy")),
    "a member that is no array": signed(npz(a=b"text")),
    "an array without its numbers": signed(npz(a=npy("(9,)"))),
    "an array of 4 GB without its numbers": signed(npz(a=npy("(10**9,)".replace("10**9", "1000000000")))),
    "an array of 4 EB without its numbers": signed(npz(a=npy("(1000000000000000000,)"))),
    "an array of a negative shape": signed(npz(a=npy("(-1,)"))),
    "an array whose shape is no number": signed(npz(a=npy("('a',)"))),
    "an array of a deep shape": signed(npz(a=npy("(" * 9_000))),
    "an array of code": signed(npz(a=npy("__import__('os').system('touch evil')"))),
    "a bomb of zeros": signed(npz(a=np.zeros(50_000_000), method=zipfile.ZIP_DEFLATED)),
    "a header of a list": signed(npz([1, 2])),
    "a header of text": signed(npz("text")),
    "a deep header": signed(npz(header=np.frombuffer(b"[" * 200_000, np.uint8))),
    "a header of numbers": signed(npz(header=VALUES[0])),
    "an fingerprint that is a list": signed(npz(HEADER | {"fingerprint": []})),
    "a training that is a list": signed(npz(HEADER | {"training": []})),
    "a training without a status": signed(npz(HEADER | {"training": {"run": "custom-0"}})),
    "a history that is a number": signed(npz(HEADER | {"history": 2})),
    "a history of numbers": signed(npz(HEADER | {"history": [1, 2]})),
    "a history that begins late": signed(npz(HEADER | {"history": at(2).history[1:]})),
    "a history with NaN": signed(npz(HEADER | {"history": [at(1).history[0] | {"loss": float("nan")}]})),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_noted_and_the_earlier_checkpoint_used(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    checkpoint.write(tmp_path, at(1))
    path = tmp_path / checkpoint._name(FINGERPRINT, 2)
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(DamagedError):
        checkpoint.read(path)
    found, (note,) = checkpoint.newest(tmp_path, FINGERPRINT)
    assert time.monotonic() - began < 5
    assert found.epoch == 1
    assert note.startswith(f"{path} is damaged (")
    assert len(note.splitlines()) == 1
    assert len(note) < 500 + len(str(path))
    assert checkpoint.newest(tmp_path, FINGERPRINT | {"code": "other"})[0] is None
    assert not (tmp_path / "evil").exists()


def test_arrays_of_bfloat16_come_back_as_they_were(tmp_path):
    values = [np.array([1.5, -2], ml_dtypes.bfloat16), np.array([3], np.int64)]
    path = tmp_path / checkpoint._name(FINGERPRINT, 2)
    path.write_bytes(signed(npz(**{"00000": values[0], "00001": values[1]})))
    found, _ = checkpoint.newest(tmp_path, FINGERPRINT)
    assert [value.dtype for value in found.values] == [value.dtype for value in values]
    assert all(map(np.array_equal, found.values, values))


def test_whole_checkpoint_of_the_same_making_is_used(tmp_path):
    path = tmp_path / checkpoint._name(FINGERPRINT, 2)
    path.write_bytes(signed(npz(**{"00000": VALUES[0], "00001": VALUES[1]})))
    found, notes = checkpoint.newest(tmp_path, FINGERPRINT)
    assert (found.epoch, notes) == (2, [])
    assert all(map(np.array_equal, found.values, VALUES))


@pytest.mark.parametrize(
    "make",
    [*NO_FILES.values(), lambda path: path.symlink_to("/no/such/file")],
    ids=[*NO_FILES, "nowhere"],
)
@pytest.mark.parametrize("name", [checkpoint._name(FINGERPRINT, 9), checkpoint._name({}, 1), "mine.ckpt"])
def test_what_is_no_checkpoint_file_is_passed_over_and_costs_none(tmp_path, make, name):
    make(tmp_path / name)
    for epoch in (1, 2, 3):
        checkpoint.write(tmp_path, at(epoch))
        assert checkpoint.newest(tmp_path, FINGERPRINT)[0].epoch == epoch
    assert checkpoint.newest(tmp_path, FINGERPRINT | {"code": "other"})[0] is None
    assert {path.name for path in tmp_path.iterdir()} == {name, *(checkpoint._name(FINGERPRINT, n) for n in (2, 3))}
    checkpoint.clear(tmp_path)
    assert not [path for path in tmp_path.iterdir() if not path.is_dir()]


def test_file_that_was_renamed_is_not_used(tmp_path):
    other = FINGERPRINT | {"learning_rate": 0.2}
    checkpoint.write(tmp_path, at(3, other))
    (tmp_path / checkpoint._name(other, 3)).rename(tmp_path / checkpoint._name(FINGERPRINT, 3))
    checkpoint.write(tmp_path, at(1))
    (tmp_path / checkpoint._name(FINGERPRINT, 1)).rename(tmp_path / checkpoint._name(FINGERPRINT, 2))
    found, notes = checkpoint.newest(tmp_path, FINGERPRINT)
    assert found is None
    assert "its learning_rate is 0.2, now 0.1" in notes[0]
    assert "it holds epoch 1" in notes[1]


@fuzz
@given(data=st.data())
def test_any_damage_of_the_file_is_found(tmp_path, data):
    checkpoint.write(tmp_path, at(1))
    path = tmp_path / checkpoint._name(FINGERPRINT, 1)
    whole = path.read_bytes()
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place, bit in data.draw(st.lists(st.tuples(st.integers(0, len(whole)), st.integers(0, 7)), max_size=3)):
        if content:
            content[place % len(content)] ^= 1 << bit
    content += data.draw(st.binary(max_size=9))
    path.write_bytes(content)
    found, notes = checkpoint.newest(tmp_path, FINGERPRINT)
    harmless = whole[:64] + content[64:65] + whole[65:] == content  # the line break is not looked at
    assert (found is not None) == harmless
    assert harmless or "is damaged" in notes[0]


@fuzz
@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 255)), min_size=1, max_size=9), st.integers(0, 3_000))
def test_any_damage_that_was_signed_again_gives_a_checkpoint_or_an_error(tmp_path, changes, end):
    body = bytearray(npz(**{"00000": VALUES[0], "00001": VALUES[1]}))
    for place, value in changes:
        body[place % len(body)] = value
    path = tmp_path / checkpoint._name(FINGERPRINT, 2)
    path.write_bytes(signed(bytes(body[:end] if end < 1_000 else body)))
    try:
        found = checkpoint.read(path)
    except DamagedError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert isinstance(found.fingerprint, dict)
        assert [row["epoch"] for row in found.history] == list(range(1, found.epoch + 1))
    checkpoint.newest(tmp_path, FINGERPRINT)
