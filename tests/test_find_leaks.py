"""Copies across splits: found however they were turned, and nothing else."""

import csv
import io
import os
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from common.data.problems import read_problems
from common.data.splits import load_splits
from data_prep import find_leaks, make_folds, prepare_table
from data_prep.leaks.compare import agreement
from data_prep.leaks.describe import SIDE, TRANSFORMS, all_turned, frequencies, unturned, whitening
from data_prep.leaks.search import Pictures


def scene(rng: np.random.Generator, width: int = 96, height: int = 72) -> PILImage.Image:
    """Soft blobs of random colours, each picture another."""
    small = PILImage.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8))
    return small.resize((width, height), PILImage.Resampling.BICUBIC)


def encoded(image: PILImage.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | options))
    return buffer.getvalue()


def save(folder, **splits):
    """A prepared folder with an image and a group column."""
    features = Features({"image": Image(), "group": Value("string")})
    DatasetDict(
        {
            split: Dataset.from_dict(
                {
                    "image": [{"bytes": content, "path": name} for name, content, _ in rows],
                    "group": [group for _, _, group in rows],
                },
                features=features,
            )
            for split, rows in splits.items()
        }
    ).save_to_disk(folder)
    return folder


def leaks_of(folder):
    with open(folder / "leaks.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(data, output, *words):
    return find_leaks.main(["--dataset_name", str(data), "--output_dir", str(output), "--num_proc", "0", *words])


def test_turning_a_spectrum_is_turning_the_image():
    pixels = np.random.default_rng(0).uniform(0, 255, (SIDE, SIDE)).astype(np.float32)
    turned = all_turned(frequencies(pixels)[None])[0]
    for number, (_, how) in enumerate(TRANSFORMS):
        image = PILImage.fromarray(pixels)
        expected = np.asarray(image if how is None else image.transpose(how))
        np.testing.assert_allclose(turned[number], frequencies(expected), atol=0.05)


def test_whitening_is_the_same_for_turned_images():
    spectra = np.random.default_rng(0).normal(size=(50, 16, 16)).astype(np.float32) * np.linspace(3, 1, 16)
    turned = all_turned(spectra)[np.arange(50), np.arange(50) % 8]
    np.testing.assert_allclose(whitening(spectra), whitening(turned), rtol=1e-5)


def test_candidates_do_not_depend_on_how_an_image_is_turned():
    spectra = np.random.default_rng(0).normal(size=(50, 16, 16)).astype(np.float32)
    turned = all_turned(spectra).reshape(400, 16, 16)
    numbers = unturned(turned * whitening(spectra)).reshape(50, 8, 256)
    np.testing.assert_allclose(numbers, np.repeat(numbers[:, :1], 8, axis=1), atol=1e-5)
    assert np.triu(numbers[:, 0] @ numbers[:, 0].T, 1).max() < 0.6  # and they tell images apart


def test_symmetric_images_are_no_copies_of_each_other():
    ring = np.hypot(*np.meshgrid(np.arange(SIDE) - 31.5, np.arange(SIDE) - 31.5))
    spectra = np.stack([frequencies(np.cos(ring / k).astype(np.float32) * 100) for k in (2, 3, 4, 5, 2)])
    pairs = Pictures(spectra).copies()
    assert pairs[["first", "second"]].to_numpy().tolist() == [[4, 0]]


@pytest.mark.slow
def test_copies_among_made_up_descriptors():
    """Frequencies of noise whose power falls as it does in photographs; copies are turned, with noise as of JPEG.

    The benchmark of benchmarks/README.md, with 49,000 and 98,000 images there.
    """
    num_images, num_copies = int(os.environ.get("NUM_IMAGES", 9_800)), 200
    random, torch_threads = np.random.default_rng(0), torch.get_num_threads()
    torch.set_num_threads(1)
    distance = np.hypot(*np.meshgrid(np.arange(16), np.arange(16)))
    spectra = random.normal(0, 1500, (num_images, 16, 16)) / np.maximum(distance, 1)
    spectra[:, 0, 0] = 0
    copies = all_turned(spectra[:num_copies])[np.arange(num_copies), random.integers(0, 8, num_copies)]
    copies += random.normal(0, 20, copies.shape)
    started = time.perf_counter()
    pairs = Pictures(np.concatenate([spectra, copies]).astype(np.float16)).copies()
    right = (pairs["first"] == pairs["second"] + num_images).sum()
    torch.set_num_threads(torch_threads)
    print(f"{num_images + num_copies} images: {time.perf_counter() - started:.1f} s, {right} copies found")
    assert right >= 0.995 * num_copies and len(pairs) == right


def test_agreement_tells_detail_from_outline():
    rng = np.random.default_rng(0)
    shape = 200 * np.exp(-np.square(np.hypot(*np.meshgrid(np.arange(SIDE) - 32, np.arange(SIDE) - 32)) / 20))
    first, second = (shape + rng.normal(0, 25, shape.shape) for _ in range(2))
    whole, detail = agreement(first, second)
    assert whole > 0.8 and detail < 0.7
    assert min(agreement(first, np.roll(first, 1, axis=0))) > 0.9


@pytest.mark.parametrize("format_options", [{"format": "PNG"}, {"format": "JPEG", "quality": 60}])
def test_turned_and_recoded_copies(tmp_path, format_options):
    """Every transform, sizes from half to one and a half, brighter and darker; and no false pair."""
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for _ in range(60)]
    copies = []
    for number, ((name, how), scale, light) in enumerate(product(TRANSFORMS, (0.5, 1, 1.5), (0.8, 1.0))):
        image = scenes[number] if how is None else scenes[number].transpose(how)
        image = image.resize((int(image.width * scale), int(image.height * scale)))
        copies.append((f"{number} {name}", encoded(image.point(lambda v, f=light: v * f), **format_options), ""))
    train = [(f"{number}", encoded(image), "") for number, image in enumerate(scenes)]
    fresh = [(f"fresh {number}", encoded(scene(rng)), "") for number in range(60)]
    data = save(tmp_path / "data", train=train, test=[*copies, *fresh])

    assert run(data, tmp_path / "out") == 1
    found = leaks_of(tmp_path / "out")
    assert sorted(int(leak["row"]) for leak in found) == list(range(48))
    for leak in found:
        number, name = leak["image"].split(" ", 1)
        assert leak["other_image"] == number
        back = {"rotated by 90 clockwise": "rotated by 90 counterclockwise"}
        back |= {there: here for here, there in back.items()}
        assert leak["transform"] == back.get(name, name)
        exact = format_options["format"] == "PNG" and int(number) % 6 == 3
        assert leak["kind"] == ("same file" if exact and name == "none" else "same pixels" if exact else "copy")


def test_none(tmp_path, capsys):
    rng = np.random.default_rng(1)
    rows = [(str(number), encoded(scene(rng)), str(number)) for number in range(40)]
    data = save(tmp_path / "data", train=rows[:30], test=rows[30:])
    assert run(data, tmp_path / "out", "--group_column", "group", "--within_splits") == 0
    assert "No leaks." in capsys.readouterr().out
    assert leaks_of(tmp_path / "out") == [] and read_problems(tmp_path / "out" / "problems.csv") == []
    assert not (tmp_path / "out.incomplete").exists()


def test_blank_images_are_no_copies_but_equal_files_are(tmp_path):
    rng = np.random.default_rng(1)
    rows = [(str(number), encoded(scene(rng)), "") for number in range(20)]
    white = [("w1", encoded(PILImage.new("RGB", (50, 50), "white")), "")]
    grey = [("w2", encoded(PILImage.new("RGB", (60, 50), (250, 250, 250))), ""), ("w3", white[0][1], "")]
    data = save(tmp_path / "data", train=[*rows, *white], test=grey)
    assert run(data, tmp_path / "out") == 1
    assert [(leak["image"], leak["other_image"], leak["kind"]) for leak in leaks_of(tmp_path / "out")] == [
        ("w3", "w1", "same file")
    ]


def test_groups_within_splits_and_excluded_rows(tmp_path, capsys):
    """What problems.csv lists is gone with --exclude_rows, and rows keep the numbers they have in the data set."""
    rng = np.random.default_rng(2)
    scenes = [scene(rng) for _ in range(12)]
    train = [(f"t{number}", encoded(image), f"g{number // 2}") for number, image in enumerate(scenes)]
    train.append(("twin", encoded(scenes[3].rotate(90, expand=True)), ""))
    test = [("leak", encoded(scenes[1].transpose(PILImage.Transpose.TRANSPOSE)), None), ("own", train[0][1], "g5")]
    test.append(("fresh", encoded(scene(rng)), ""))
    data = save(tmp_path / "data", train=train, test=test)
    words = ["--group_column", "group", "--within_splits"]
    assert run(data, tmp_path / "out", *words) == 1
    found = {(leak["image"], leak["other_image"]): leak for leak in leaks_of(tmp_path / "out")}
    assert {pair: leak["kind"] for pair, leak in found.items()} == {
        ("twin", "t3"): "same pixels",
        ("leak", "t1"): "same pixels",
        ("own", "t0"): "same file",
        ("own", "t10"): "same group",
        ("own", "t11"): "same group",
    }
    assert found["twin", "t3"]["transform"] == "rotated by 90 clockwise"
    assert found["leak", "t1"]["transform"] == "transposed"
    problems = tmp_path / "out" / "problems.csv"
    listed = [(problem.split, problem.row, problem.image) for problem in read_problems(problems)]
    assert listed == [("train", row, f"t{row}") for row in (0, 1, 3, 10, 11)]
    page = (tmp_path / "out" / "leaks.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 10 and "http" not in page

    assert run(data, tmp_path / "clean", *words, "--exclude_rows", str(problems)) == 0
    first = tmp_path / "first.csv"
    first.write_text("split,row,image,kind,problem\ntrain,0,t0,x,x\n")
    assert run(data, tmp_path / "rest", "--exclude_rows", str(first)) == 1
    assert [leak["other_row"] for leak in leaks_of(tmp_path / "rest")] == ["1"]


def test_a_picture_with_many_copies_is_found_whole(tmp_path):
    """All pairs across splits; one pass is enough; groups.csv keeps copies in one fold, with what they are tied to."""
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for _ in range(40)]
    train, test = [(f"{number}", encoded(image), f"g{number}") for number, image in enumerate(scenes)], []
    for number, count in ((0, 12), (1, 5), (2, 4), (3, 1)):
        for copy in range(count):
            how = TRANSFORMS[int(rng.integers(8))][1]
            image = scenes[number] if how is None else scenes[number].transpose(how)
            image = image.resize((image.width // 2, image.height // 2))
            content = encoded(image, format="JPEG", quality=int(rng.choice([30, 50, 80])))
            (test if copy % 2 == 0 else train).append((f"{number} {copy}", content, ""))
    train.append(("twin", train[0][1], "g39"))
    data = save(tmp_path / "data", train=train, test=test)
    assert run(data, tmp_path / "out", "--group_column", "group") == 1

    def original(name):
        return "0" if name == "twin" else name.split()[0]

    expected = {(one, two) for one, _, _ in test for two, _, _ in train if original(one) == original(two)}
    assert {(leak["image"], leak["other_image"]) for leak in leaks_of(tmp_path / "out")} == expected
    assert run(data, tmp_path / "again", "--exclude_rows", str(tmp_path / "out" / "problems.csv")) == 0

    groups = tmp_path / "out" / "groups.csv"
    table = pd.read_csv(groups, dtype=str).set_index("image")["group"]
    assert table.nunique() == 39 and table["39"] == table["twin"] == table["0"] == table["0 11"] != table["1 4"]
    words = ["--dataset_name", str(data), "--num_folds", "3", "--output_dir", str(tmp_path / "folds")]
    make_folds.main([*words, "--group_column", str(groups)])
    for fold in (tmp_path / "folds").glob("fold_*"):
        rows = pd.read_csv(fold / "rows.csv").merge(
            pd.read_csv(groups), left_on=["source_split", "row"], right_on=["split", "row"]
        )
        assert (rows.groupby("group")["split_x"].nunique() == 1).all()
    rows = groups.read_text().splitlines()
    groups.write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(ValueError, match="was made for other data"):
        make_folds.main([*words, "--group_column", str(groups)])


def test_groups_for_prepare_table(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(0, 24, 2):
        picture = scene(rng)
        picture.save(tmp_path / f"{number}.png")
        picture.transpose(PILImage.Transpose.ROTATE_90).save(tmp_path / f"{number + 1}.png")
    table = tmp_path / "all.csv"
    table.write_text("file,kind\n" + "".join(f"{number}.png,k{number % 2}\n" for number in range(24)))
    words = ["--train_file", str(table), "--image_column", "file", "--within_splits", "--num_proc", "0"]
    assert find_leaks.main([*words, "--output_dir", str(tmp_path / "out")]) == 1
    words = ["--table", str(table), "--image_column", "file", "--label_column", "kind", "--num_proc", "1"]
    words += ["--group_column", str(tmp_path / "out" / "groups.csv"), "--validation_share", "0.3"]
    prepare_table.main([*words, "--output_dir", str(tmp_path / "data")])
    splits = load_splits(str(tmp_path / "data"), None, {})
    pairs = {name: {int(Path(path).stem) // 2 for path in rows["image"]} for name, rows in splits.items()}
    assert all(pairs.values()) and sum(map(len, pairs.values())) == 12


def test_hostile_names_stay_text(tmp_path):
    content = encoded(scene(np.random.default_rng(0)))
    row = [("<script>alert(1)</script>", content, "")]
    data = save(tmp_path / "data", train=row, test=row)
    assert run(data, tmp_path / "out") == 1
    assert "<script>" not in (tmp_path / "out" / "leaks.html").read_text()


def test_broken_images_are_told_not_fatal(tmp_path, capsys):
    rng = np.random.default_rng(0)
    good = [(str(number), encoded(scene(rng)), "") for number in range(5)]
    data = save(tmp_path / "data", train=[*good, ("bad", b"no image", "")], test=[("bad", b"no image", "")])
    assert run(data, tmp_path / "out") == 0
    assert "2 images do not decode" in capsys.readouterr().err


def test_an_interrupted_search_goes_on(tmp_path, monkeypatch):
    """What was described stays described; the result is that of one go."""
    rng = np.random.default_rng(0)
    rows = [(str(number), encoded(scene(rng)), "") for number in range(20)]
    data = save(tmp_path / "data", train=rows, test=rows[:4])
    assert run(data, tmp_path / "whole") == 1

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(find_leaks, "Pictures", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(find_leaks, "describe", interrupt)
        assert run(data, tmp_path / "out") == 1
    assert leaks_of(tmp_path / "out") == leaks_of(tmp_path / "whole")


def test_mistakes_are_told(tmp_path):
    rows = [("0", encoded(scene(np.random.default_rng(0))), "")]
    data = save(tmp_path / "data", train=rows)
    with pytest.raises(ValueError, match="--within_splits"):
        run(data, tmp_path / "out")
    with pytest.raises(ValueError, match="--train_file"):
        find_leaks.main(["--output_dir", str(tmp_path / "out")])
    both = save(tmp_path / "both", train=rows, test=rows)
    with pytest.raises(ValueError, match="no column 'artist'"):
        run(both, tmp_path / "out", "--group_column", "artist")
