"""The demo data: what the fungarium promises to the trainer and to whoever starts it."""

import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from data_prep.make_demo import main, make_taxonomy
from demo import sets
from demo.fungi import LEVELS, all_species
from demo.sets import specimen_counts, write_atomically

SMALL = {"num_train": 200, "num_validation": 100}
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_taxonomy(tmp_path_factory.mktemp("demo") / "fungarium", **SMALL)


@pytest.fixture(scope="module")
def demo(folder):
    return datasets.load_from_disk(str(folder))


def labels(split) -> list[tuple]:
    return list(zip(*(split[level] for level in LEVELS), strict=True))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(*_):
    raise AssertionError("drew pictures again")


def test_columns_and_sizes(demo):
    assert (len(demo["train"]), len(demo["validation"])) == (200, 100)
    for split in demo.values():
        assert split.column_names == ["image", *LEVELS, "specimen"]
        assert isinstance(split.features["image"], datasets.Image)
    specimens = [*demo["train"]["specimen"], *demo["validation"]["specimen"]]
    assert len(set(specimens)) == 300


def test_labels_are_paths_of_one_tree(demo):
    paths = {path for split in demo.values() for path in labels(split)}
    parents: dict[tuple[int, str], set] = {}
    for path in paths:
        assert None not in path[:-1]
        for depth in range(1, len(path)):
            if path[depth] is not None:
                parents.setdefault((depth, path[depth]), set()).add(path[:depth])
    assert all(len(above) == 1 for above in parents.values())
    names = [name for depth in range(6) for name in {path[depth] for path in paths} if name]
    assert len(names) == len(set(names)), "a name stands for one node only"
    assert all(path[5] is None or path[5].split()[0] == path[4] and len(path[5].split()) == 2 for path in paths)


def test_tree_narrows_towards_its_root():
    sizes = [len({species.names[: depth + 1] for species in all_species()}) for depth in range(6)]
    assert sizes == sorted(set(sizes)) and sizes[0] >= 3 and 35 <= sizes[5] <= 50
    assert len({species.look for species in all_species()}) == sizes[5], "every species looks different"


def test_genus_only_specimens_in_both_splits(demo):
    for split in demo.values():
        assert 0.05 < np.mean([name is None for name in split["species"]]) < 0.12


def test_every_species_is_in_both_splits(demo):
    species = {entry.names[-1] for entry in all_species()}
    for split, least in (("train", 4), ("validation", 2)):
        counts = Counter(name for name in demo[split]["species"] if name)
        assert set(counts) == species and min(counts.values()) >= least


def test_default_size_is_long_tailed():
    counts = specimen_counts("train", 1840)
    assert counts.sum() == 1840 and counts.min() >= 4 and counts.max() >= 20 * counts.min()
    validation = specimen_counts("validation", 442)
    assert validation.sum() == 442 and validation.min() >= 2
    assert np.corrcoef(counts, validation)[0, 1] > 0.8, "what is frequent in training is frequent in validation"


def test_pictures_are_jpegs_of_many_sizes(demo):
    stored = demo["train"].cast_column("image", datasets.Image(decode=False))["image"]
    pictures = [Image.open(io.BytesIO(entry["bytes"])) for entry in stored]
    assert all(picture.format == "JPEG" and picture.mode == "RGB" for picture in pictures)
    sides = np.array([picture.size for picture in pictures])
    assert sides.min() >= 72 and sides.max() <= 160
    assert len({tuple(size) for size in sides.tolist()}) > 150
    assert np.ptp(sides[:, 0] / sides[:, 1]) > 0.8
    assert all(not os.path.dirname(entry["path"] or "") for entry in stored)
    assert np.mean([np.asarray(picture).std() for picture in pictures]) > 15, "the pictures show something"


def test_another_seed_draws_other_specimens_of_the_same_species(demo, tmp_path):
    other = datasets.load_from_disk(str(make_taxonomy(tmp_path / "other", **SMALL, seed=1)))["train"]
    assert Counter(name for name in other["species"] if name) == Counter(
        name for name in demo["train"]["species"] if name
    )
    ours, theirs = (split.cast_column("image", datasets.Image(decode=False)) for split in (demo["train"], other))
    assert not {entry["bytes"] for entry in ours["image"]} & {entry["bytes"] for entry in theirs["image"]}


def test_finished_folder_is_returned_at_once(folder, monkeypatch):
    monkeypatch.setattr(sets, "Studio", refuse)
    before = files(folder)
    assert make_taxonomy(str(folder), num_train=5, seed=9) == folder
    assert files(folder) == before


def test_leftovers_of_a_kill_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(sets.Studio, "picture", lambda *_: Image.new("RGB", (80, 80)))
    (tmp_path / ".demo-k1lled" / "data" / "train").mkdir(parents=True)
    (tmp_path / "demo" / "train").mkdir(parents=True)
    (tmp_path / "demo" / "train" / "data-00000-of-00001.arrow").write_bytes(b"half")
    made = make_taxonomy(tmp_path / "demo", **SMALL)
    assert len(datasets.load_from_disk(str(made))["train"]) == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == [".demo-k1lled", "demo"]


def test_failure_leaves_nothing(tmp_path):
    def write(target: Path) -> None:
        target.mkdir()
        (target / "dataset_dict.json").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "demo", write)
    assert list(tmp_path.iterdir()) == []


def test_first_of_two_processes_wins(tmp_path):
    def write(target: Path) -> None:
        target.mkdir()
        (target / "dataset_dict.json").write_text("late")
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "dataset_dict.json").write_text("first")

    write_atomically(tmp_path / "demo", write)
    assert (tmp_path / "demo" / "dataset_dict.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_folder_is_open_to_others(folder):
    mask = os.umask(0)
    os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize(
    "options", [{"num_train": 100}, {"num_validation": 20}, {"num_train": -1}, {"seed": -1}], ids=str
)
def test_impossible_arguments(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_taxonomy(tmp_path / "demo", **{**SMALL, **options})
    assert list(tmp_path.iterdir()) == []


def test_least_size_named_in_the_error_works():
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match="at least") as caught:
            specimen_counts(split, 1)
        least = int(str(caught.value).split("at least ")[1].split()[0])
        assert len(sets.plan_specimens(split, least, 0)) == least


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="other files"):
        make_taxonomy(tmp_path, **SMALL)
    with pytest.raises(ValueError, match="not a folder"):
        make_taxonomy(tmp_path / "thesis.txt", **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_command_line(folder, tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    main(["taxonomy", "--output_dir", str(folder), "--contact_sheet", str(sheet)])
    assert str(folder) in capsys.readouterr().out
    assert min(Image.open(sheet).size) > 500
    with pytest.raises(SystemExit):
        main([])


@pytest.mark.slow
def test_runs_as_a_script(folder, tmp_path):
    sizes = [f"--{name}={size}" for name, size in SMALL.items()]
    command = [sys.executable, "data_prep/make_demo.py", "taxonomy", f"--output_dir={tmp_path / 'demo'}", *sizes]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert files(tmp_path / "demo") == files(folder), "another process draws the same"
