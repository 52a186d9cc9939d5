"""The cache of decoded images and masks against the files it was made from."""

import errno
import fcntl
import io
import json
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from common.data import decoded_cache
from common.data.decoded_cache import open_cache
from common.data.masks import MaskedImageRows, MaskReader
from common.data.rows import ImageRows, Samples, make_loader
from common.images.files import BadSampleError
from common.images.mask_transforms import Geometry, MaskEvaluationTransform, MaskTrainTransform
from common.model.hierarchy import Hierarchy

TREE = Hierarchy(["class"], [["a", "b", "c", "d"]], [[None] * 4])
LARGER_TREE = Hierarchy(["class"], [["a", "b", "c", "d", "e"]], [[None] * 5])
SIZES = [(20, 31), (1, 1), (40, 8), (17, 17), (9, 50), (33, 12)]


def png(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def contents(seed=0):
    rng = np.random.default_rng(seed)
    images = [png(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]
    masks = [png(rng.choice([0, 1, 2, 3, 255], size).astype(np.uint8)) for size in SIZES]
    return images, masks


def byte_rows(images, masks, reader=None):
    columns = {"image": images, "mask": masks}
    dataset = datasets.Dataset.from_dict(
        {
            name: [content and {"bytes": content, "path": None} for content in column]
            for name, column in columns.items()
        }
    )
    for name in columns:
        dataset = dataset.cast_column(name, datasets.Image())
    return make_rows(dataset, None, reader)


def path_rows(folder, root=None, split="train"):
    """Writes the files, if they are not there yet."""
    paths = {}
    for name, column in zip(("image", "mask"), contents(), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        paths[name] = [str(folder / name / f"{row}.png") for row in range(len(column))]
        for path, content in zip(paths[name], column, strict=True):
            if not os.path.exists(path):
                with open(path, "wb") as file:
                    file.write(content)
    return make_rows(datasets.Dataset.from_dict(paths), root, split=split)


def make_rows(dataset, root=None, reader=None, split="train"):
    images, masks = (ImageRows(dataset, column, split, root) for column in ("image", "mask"))
    return MaskedImageRows(images, masks, reader or MaskReader(TREE))


def load(rows, index):
    return rows.load(index, rows.encoded([index])[0])


@pytest.fixture
def made(monkeypatch):
    """Counts how often a cache is written."""
    calls, write = [], decoded_cache._write

    def counting(*args):
        calls.append(args)
        return write(*args)

    monkeypatch.setattr(decoded_cache, "_write", counting)
    return calls


def finished(root):
    return sorted(path.parent.name for path in root.glob("*/done.json"))


# ---- content


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_same_as_from_the_files(tmp_path, num_workers):
    rows = byte_rows(*contents())
    cache = open_cache(tmp_path, rows, num_workers)
    assert len(cache) == len(rows) == 6
    assert cache.encoded([4, 0]) == [None, None]
    for index in (3, 0, 5, 1, 4, 2, 0):
        image, mask = load(cache, index)
        expected = load(rows, index)
        assert image.dtype == mask.dtype == torch.uint8
        assert torch.equal(image, expected[0]) and torch.equal(mask, expected[1])
    image.zero_(), mask.zero_()  # what was handed over is a copy
    assert torch.equal(load(cache, index)[0], expected[0]) and torch.equal(load(cache, index)[1], expected[1])


def test_paths(tmp_path):
    rows = path_rows(tmp_path / "data")
    cache = open_cache(tmp_path / "cache", rows, 0)
    for index in range(6):
        assert all(torch.equal(*pair) for pair in zip(load(cache, index), load(rows, index), strict=True))


def test_training_does_not_notice(tmp_path):
    """The same augmented batches from the files and from the cache, with workers and without."""
    rows = byte_rows(*contents())
    args = SimpleNamespace(scale_jitter=(0.5, 2), rare_crop=0.5, hflip=0.5, vflip=0.5, rot90=0.5, color_jitter=0.2)
    args.balanced_crop = False
    transform = MaskTrainTransform(args, Geometry(16, "fit"), (0.5, 0.5, 0.5))
    keys = [[(0, 3), (0, 1)], [(1, 0), (1, 5), (0, 2)]]
    expected = list(make_loader(Samples(rows, np.arange(6), transform, seed=1), keys, 0, False))
    cache = open_cache(tmp_path, rows, 0)
    load(cache, 0)  # mapped in this process too
    for num_workers in (0, 2):
        batches = list(make_loader(Samples(cache, np.arange(6), transform, seed=1), keys, num_workers, False))
        for batch, other in zip(batches, expected, strict=True):
            assert all(torch.equal(batch[name], other[name]) for name in ("pixels", "labels", "rows"))


@pytest.mark.parametrize("geometry", [Geometry(16), Geometry(16, "fit"), Geometry(16, windows=True, resize_longer=25)])
def test_evaluation_does_not_notice(tmp_path, geometry):
    rows = byte_rows(*contents())
    cache = open_cache(tmp_path, rows, 0)
    transform = MaskEvaluationTransform(geometry, (0.5, 0.5, 0.5))
    for key in [(0, row) for row in range(6)]:
        one, two = (Samples(source, np.arange(6), transform)[key] for source in (rows, cache))
        assert all(torch.equal(one[name], two[name]) for name in ("pixels", "labels", "truth"))
        assert one["resized"] == two["resized"]


# ---- made once, and again after changes


def test_made_once(tmp_path, made, monkeypatch):
    rows = byte_rows(*contents())
    first = open_cache(tmp_path, rows, 0)
    expected = [load(first, index) for index in range(6)]

    def refuse(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(MaskedImageRows, "load", refuse)
    monkeypatch.setattr(MaskReader, "__call__", refuse)
    again = open_cache(tmp_path, byte_rows(*contents()), 0)
    for index in range(6):
        assert all(torch.equal(*pair) for pair in zip(load(again, index), expected[index], strict=True))
    assert len(made) == 1 and len(finished(tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 1  # nothing is left of the making


def test_making_draws_no_random_number(tmp_path, made):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for num_workers in (0, 2):
        open_cache(tmp_path / str(num_workers), byte_rows(*contents()), num_workers)
        assert torch.equal(torch.get_rng_state(), before)
    assert len(made) == 2


def changed_bytes(which):
    columns = list(contents())
    columns[which] = [*columns[which][:3], contents(seed=1)[which][3], *columns[which][4:]]
    return byte_rows(*columns)


def swapped():
    return byte_rows(*([column[1], column[0], *column[2:]] for column in contents()))


def shorter():
    return byte_rows(*(column[:-1] for column in contents()))


@pytest.mark.parametrize(
    "change",
    [
        lambda tmp_path: changed_bytes(0),
        lambda tmp_path: changed_bytes(1),
        lambda tmp_path: swapped(),
        lambda tmp_path: shorter(),
        lambda tmp_path: byte_rows(*contents(), MaskReader(LARGER_TREE)),
        lambda tmp_path: byte_rows(*contents(), MaskReader(TREE, palette(tmp_path, 0))),
    ],
)
def test_changes_make_another(tmp_path, made, change):
    open_cache(tmp_path / "cache", byte_rows(*contents()), 0)
    rows = change(tmp_path)
    cache = open_cache(tmp_path / "cache", rows, 0)
    assert len(made) == len(finished(tmp_path / "cache")) == 2
    for index in range(len(rows)):
        try:
            expected = load(rows, index)
        except BadSampleError:  # colours that the palette does not have
            assert rows.reader.palette
            continue
        assert all(torch.equal(*pair) for pair in zip(load(cache, index), expected, strict=True))
    open_cache(tmp_path / "cache", byte_rows(*contents()), 0)
    assert len(made) == 2  # the first is still there


def palette(folder, first):
    path = folder / f"palette {first}.json"
    path.write_text(json.dumps({name: [first + index] * 3 for index, name in enumerate("abcd")}))
    return path


def test_another_palette_makes_another(tmp_path, made):
    for first in (0, 1, 0):
        rows = byte_rows(*contents(), MaskReader(TREE, palette(tmp_path, first)))
        open_cache(tmp_path / "cache", rows, 0)
    assert len(made) == 2


@pytest.mark.parametrize("column", ["image", "mask"])
def test_files_that_change(tmp_path, made, column):
    data, cache = tmp_path / "data", tmp_path / "cache"
    open_cache(cache, path_rows(data), 0)
    open_cache(cache, path_rows(data), 0)
    assert len(made) == 1
    path = data / column / "2.png"
    content, state = path.read_bytes(), os.stat(path)
    path.write_bytes(content + b" ")  # another size at the same time
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    open_cache(cache, path_rows(data), 0)
    assert len(made) == 2
    path.write_bytes(content)  # the same size at another time
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    open_cache(cache, path_rows(data), 0)
    assert len(made) == 3
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # all as it was
    open_cache(cache, path_rows(data), 0)
    assert len(made) == 3


def test_the_content_of_a_changed_file_is_seen(tmp_path):
    data, cache = tmp_path / "data", tmp_path / "cache"
    open_cache(cache, path_rows(data), 0)
    (data / "mask/0.png").write_bytes(png(np.full(SIZES[0], 3, np.uint8)))
    assert (load(open_cache(cache, path_rows(data), 0), 0)[1] == 3).all()
    (data / "mask/0.png").unlink()
    rows = path_rows(tmp_path / "other")
    rows.masks.rows = datasets.Dataset.from_dict({"mask": [str(data / f"mask/{row}.png") for row in range(6)]})
    with pytest.raises(BadSampleError, match="mask in row 0"):
        load(open_cache(cache, rows, 0), 0)


def test_a_cache_does_not_open_what_lies_outside(tmp_path):
    """Made with a root that allows the files, it does not serve one that forbids them."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    load(open_cache(cache, path_rows(data, root=tmp_path), 0), 0)
    strict = open_cache(cache, path_rows(data, root=data / "image"), 0)
    with pytest.raises(BadSampleError, match="outside of the folder"):
        load(strict, 0)


# ---- broken rows


def broken_contents():
    images, masks = contents()
    images[1] = images[1][:40]
    masks[2] = png(np.full(SIZES[2], 77, np.uint8))
    masks[4] = png(np.zeros((3, 3), np.uint8))
    images[5] = None
    return images, masks


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_rows_go_back_to_the_files(tmp_path, num_workers):
    rows = byte_rows(*broken_contents())
    cache = open_cache(tmp_path, rows, num_workers)
    assert [cache.file(row).is_file() for row in range(6)] == [True, False, False, True, False, False]
    for index in range(6):
        if index in (0, 3):
            assert all(torch.equal(*pair) for pair in zip(load(cache, index), load(rows, index), strict=True))
            continue
        messages = []
        for source in (rows, cache):
            with pytest.raises(BadSampleError) as caught:
                load(source, index)
            messages.append(str(caught.value))
        assert messages[0] == messages[1] and f"row {index} of the train split" in messages[0]


def test_broken_rows_are_skipped_alike(tmp_path):
    rows = byte_rows(*broken_contents())
    cache = open_cache(tmp_path, rows, 0)
    transform = MaskEvaluationTransform(Geometry(16), (0.5, 0.5, 0.5))
    keys = [[(0, row) for row in range(6)]]
    (one,), (two,) = (
        list(make_loader(Samples(source, np.arange(6), transform, on_bad_sample="drop"), keys, 0, False))
        for source in (rows, cache)
    )
    assert one["rows"].tolist() == two["rows"].tolist() == [0, 3]
    assert one["problems"] == two["problems"] and len(one["problems"]) == 4
    replaced = [Samples(source, np.arange(6), transform, on_bad_sample="replace")[0, 4] for source in (rows, cache)]
    assert replaced[0]["rows"] == replaced[1]["rows"] == 0
    assert replaced[0]["problems"] == replaced[1]["problems"] != []


def test_nothing_but_broken_rows(tmp_path):
    rows = byte_rows([b"no image"] * 2, [png(np.zeros((2, 2), np.uint8))] * 2)
    cache = open_cache(tmp_path, rows, 0)
    for index in range(2):
        with pytest.raises(BadSampleError, match=f"row {index}"):
            load(cache, index)


# ---- interruptions


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_making_goes_on_where_it_stopped(tmp_path, monkeypatch, error):
    rows, load_row, loaded = byte_rows(*broken_contents()), MaskedImageRows.load, []

    def interrupt(rows, index, source):
        loaded.append(index)
        if loaded.count(3) == 1 and index == 3:
            raise error("in the middle")
        return load_row(rows, index, source)

    with monkeypatch.context() as patch:
        patch.setattr(MaskedImageRows, "load", interrupt)
        with pytest.raises(error, match="in the middle"):
            open_cache(tmp_path / "cut", rows, 0)
        assert finished(tmp_path / "cut") == []
        cache = open_cache(tmp_path / "cut", rows, 0)
    assert loaded == [0, 1, 2, 3, 1, 2, 3, 4, 5]  # those that are broken are tried again
    assert all(
        torch.equal(*pair) for index in (0, 3) for pair in zip(load(cache, index), load(rows, index), strict=True)
    )


def test_interrupted_while_writing(tmp_path, monkeypatch):
    rows = byte_rows(*contents())

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            open_cache(tmp_path, rows, 0)
    assert finished(tmp_path) == []
    cache = open_cache(tmp_path, rows, 0)
    assert torch.equal(load(cache, 3)[0], load(rows, 3)[0])
    assert [path.name for path in cache.folder.iterdir() if path.name.startswith(".making")] == []


@pytest.mark.parametrize("left", [b"half", b"", None])
def test_pixels_that_a_power_cut_took_come_from_the_files(tmp_path, left):
    rows = byte_rows(*contents())
    cache = open_cache(tmp_path, rows, 0)
    content = cache.file(5).read_bytes()
    cache.file(5).unlink()
    if left is not None:
        cache.file(5).write_bytes(content[: len(content) // 2] if left else left)
    assert torch.equal(load(cache, 5)[1], load(rows, 5)[1])


def test_two_at_once_make_one(tmp_path, made, monkeypatch):
    """Two nodes that share a disk, or two runs: the second waits, and finds it done."""
    rows, write, started = byte_rows(*contents()), decoded_cache._write, threading.Event()

    def slow(*args):
        started.set()
        time.sleep(0.5)
        write(*args)

    monkeypatch.setattr(decoded_cache, "_write", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(open_cache, tmp_path, rows, 0)
        started.wait()
        second = open_cache(tmp_path, rows, 0)
    assert len(made) == 1 and first.result().folder == second.folder
    assert torch.equal(load(second, 0)[0], load(rows, 0)[0])


def test_without_locks_both_make_it(tmp_path, monkeypatch):
    rows, write = byte_rows(*contents()), decoded_cache._write

    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    def slow(*args):
        monkeypatch.setattr(decoded_cache, "_write", write)
        open_cache(tmp_path, rows, 0)
        return write(*args)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(decoded_cache, "_write", slow)
    cache = open_cache(tmp_path, rows, 0)
    assert len(finished(tmp_path)) == len(list(tmp_path.iterdir())) == 1
    assert torch.equal(load(cache, 0)[0], load(rows, 0)[0])


# ---- processes


def test_pickles_do_not_carry_the_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(image[..., 0] % 4).save(tmp_path / "mask.png")
    rows = make_rows(
        datasets.Dataset.from_dict(
            {name: [str(tmp_path / f"{name}.png")] * 3 for name in ("image", "mask")},
        )
    )
    cache = open_cache(tmp_path / "cache", rows, 0)
    expected = load(cache, 1)  # mapped
    pickled = pickle.dumps(cache)
    assert len(pickled) < 100_000 < image.size
    copy = pickle.loads(pickled)
    assert all(torch.equal(*pair) for pair in zip(load(copy, 1), expected, strict=True))
    assert all(torch.equal(*pair) for pair in zip(load(cache, 1), expected, strict=True))  # and the first still works
