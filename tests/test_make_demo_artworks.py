"""The artworks demo data: photographs whose masks say exactly what damage was painted."""

import io
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from common.labels.hierarchy_files import load_hierarchy
from data_prep.make_demo import main
from demo import sets
from demo.artworks import (
    BACKGROUND,
    CLASSES,
    HABITS,
    MATERIALS,
    PADDING,
    SCENES,
    Artwork,
    Damage,
    Gallery,
    Sheet,
    Shot,
)
from demo.sets import HIERARCHY, make_artworks, plan_artworks
from demo.shapes import Pen

SMALL = {"num_train": 32, "num_validation": 16}
LEAST = {"num_train": 16, "num_validation": 16}
SPLITS = {"train": 400, "validation": 100}
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_artworks(tmp_path_factory.mktemp("demo") / "artworks", **SMALL)


@pytest.fixture(scope="module")
def demo(folder):
    return datasets.load_from_disk(str(folder))


@pytest.fixture(scope="module")
def gallery():
    return Gallery(0)


@pytest.fixture(scope="module")
def plans():
    return {split: plan_artworks(split, size, 0) for split, size in SPLITS.items()}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(split, column: str) -> list[Image.Image]:
    rows = split.cast_column(column, datasets.Image(decode=False))[column]
    return [Image.open(io.BytesIO(row["bytes"])) for row in rows]


# ---- the data set


def test_columns_and_sizes(demo):
    assert (len(demo["train"]), len(demo["validation"])) == (32, 16)
    for split in demo.values():
        assert split.column_names == ["image", "mask", "artwork", "content", "material"]
        assert all(isinstance(split.features[name], datasets.Image) for name in ("image", "mask"))
        assert set(split["content"]) == set(SCENES) and set(split["material"]) == set(MATERIALS)


def test_pictures_and_masks(demo):
    shapes = set()
    for split in demo.values():
        for image, mask in zip(stored(split, "image"), stored(split, "mask"), strict=True):
            assert (image.format, image.mode) == ("JPEG", "RGB") and (mask.format, mask.mode) == ("PNG", "P")
            assert image.size == mask.size and 128 <= max(image.size) <= 192
            assert set(np.unique(mask).tolist()) <= {*range(len(CLASSES)), BACKGROUND}
            assert np.asarray(image).std() > 10, "the picture shows something"
            shapes.add(image.size)
    assert len(shapes) > 40


def test_masks_have_a_colour_for_every_class(demo):
    palette = np.reshape(stored(demo["train"], "mask")[0].getpalette(), (-1, 3))
    assert len({tuple(palette[value]) for value in (*range(len(CLASSES)), BACKGROUND)}) == len(CLASSES) + 1


def test_even_small_splits_show_every_class(demo):
    for split in demo.values():
        seen = {value for mask in stored(split, "mask") for value in np.unique(mask).tolist()}
        assert seen == {*range(len(CLASSES)), BACKGROUND}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [16, 19, 24])
def test_few_artworks_show_every_class_at_any_seed(gallery, size, seed):
    for split in SPLITS:
        seen: set[int] = set()
        for artwork in plan_artworks(split, size, seed):
            blank = Image.new("RGB", tuple(np.round(640 * artwork.half).astype(int) + 2 * PADDING))
            seen |= set(np.unique(gallery.photograph(blank, artwork, artwork.shots[0])[1]).tolist())
        assert seen == {*range(len(CLASSES)), BACKGROUND}


def test_most_pixels_are_clean_and_some_are_outside(demo):
    values = np.concatenate([np.asarray(mask).ravel() for split in demo.values() for mask in stored(split, "mask")])
    assert 0.6 < np.mean(values[values != BACKGROUND] == 0) < 0.9
    assert 0.01 < np.mean(values == BACKGROUND) < 0.3


def test_artworks_stay_together(demo):
    groups = {split: Counter(demo[split]["artwork"]) for split in SPLITS}
    assert not set(groups["train"]) & set(groups["validation"])
    assert max(groups["train"].values()) in (2, 3, 4)
    for split in demo.values():
        kinds = defaultdict(set)
        for artwork, *kind in zip(split["artwork"], split["content"], split["material"], strict=True):
            kinds[artwork].add(tuple(kind))
        assert all(len(found) == 1 for found in kinds.values())


def test_hierarchy_lies_beside_the_data(folder):
    tree, report = load_hierarchy(folder / "hierarchy.yaml")
    assert (folder / "hierarchy.yaml").read_bytes() == HIERARCHY.read_bytes() and not report
    assert [tree.path_names(*leaf)[-1] for leaf in tree.leaves] == list(CLASSES)
    assert tree.levels == ("binary", "coarse", "fine")
    paths = {path[-1]: path[:-1] for path in (tree.path_names(*leaf) for leaf in tree.leaves)}
    assert paths["Clean"] == ("Clean", None) and paths["Hair"] == ("Damage", "Surface")
    sizes = Counter(path[1] for path in paths.values() if path[1])
    assert sizes == {"Structural": 5, "Surface": 7, "Color": 1, "Optical": 2}


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("  - Hair\n", "", r"not in 'classes' \['Hair'\]"),
        ("  - Hair\n", "  - Hair\n  - Hair\n", r"listed twice \['Hair'\]"),
        ("Hair, ", "", r"not in the tree \['Hair'\]"),
        ("[Burn marks]", "[Burn marks, Hair]", r"listed twice \['Hair'\]"),
    ],
)
def test_hierarchy_with_a_missing_or_doubled_class_is_refused(tmp_path, old, new, problem):
    text = HIERARCHY.read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "tree.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        load_hierarchy(tmp_path / "tree.yaml")


def test_readme_tells_the_shares(folder):
    rows = [line.split("|")[2:5] for line in (folder / "README.md").read_text().splitlines() if line.startswith("| ")]
    shares = {name.strip(): float(share) for name, share, _ in rows if name.strip() in CLASSES}
    assert list(shares) == list(CLASSES) and sum(shares.values()) == pytest.approx(100, abs=0.1)


# ---- the plan at default sizes


def test_default_plan(plans):
    for split, artworks in plans.items():
        sizes = [len(artwork.shots) for artwork in artworks]
        assert sum(sizes) == SPLITS[split] and set(sizes) == {1, 2, 3, 4}
        assert {artwork.content for artwork in artworks} == set(SCENES)
        kinds = Counter(kind for artwork in artworks for kind in {damage.kind for damage in artwork.damages})
        assert set(kinds) == set(HABITS) and min(kinds.values()) >= 3
        assert max(kinds.values()) > 3 * min(kinds.values())
        assert any(not artwork.damages for artwork in artworks)
        assert all(artwork.shots[0].whole and artwork.shots[0].age == 1 for artwork in artworks), (
            "all damage is seen once"
        )
    assert len({artwork.seed for artworks in plans.values() for artwork in artworks}) == sum(map(len, plans.values()))


def test_every_damage_has_its_habit():
    assert {"Clean", *HABITS} == set(CLASSES) and len(CLASSES) == 16


# ---- pictures and masks agree


def photograph(gallery: Gallery, artwork: Artwork, shot: Shot, damages=()) -> tuple[np.ndarray, np.ndarray]:
    painting = gallery.paint(artwork)
    image, mask = gallery.photograph(painting, artwork._replace(damages=tuple(damages)), shot)
    return np.asarray(image, int), mask


@pytest.mark.parametrize("name", HABITS)
def test_damage_changes_the_pixels_that_its_mask_names(gallery, name):
    value, habit = CLASSES.index(name), HABITS[name]
    inside, outside = [], []
    for number, material in enumerate(MATERIALS):
        artwork = Artwork(list(SCENES)[number], material, 1.2, (5, number))
        damage = Damage(name, (0.08, -0.05), habit.largest, (6, number), 0.0)
        clean, blank = photograph(gallery, artwork, Shot(1.0, True, (7, number)))
        image, mask = photograph(gallery, artwork, Shot(1.0, True, (7, number)), [damage])
        assert set(np.unique(blank).tolist()) <= {0, BACKGROUND}
        assert np.array_equal(mask == BACKGROUND, blank == BACKGROUND)
        assert set(np.unique(mask).tolist()) - {BACKGROUND} == {0, value}
        change = np.abs(image - clean).sum(-1)
        inside.append(change[mask == value].mean())
        outside.append(change[mask != value].mean())
        assert change[blank == BACKGROUND].mean() < 1, "what is around an artwork is not damaged"
    assert np.mean(inside) > 60 and min(inside) > 20 and max(outside) < 8


@pytest.mark.parametrize("name", HABITS)
def test_damage_is_large_enough_to_be_learned(gallery, name):
    artwork = Artwork("portrait", "oil", 0.8, (1,))
    damage = Damage(name, (0.0, 0.1), HABITS[name].smallest, (2,), 0.0)
    _, mask = photograph(gallery, artwork, Shot(0.5, True, (3,)), [damage])
    assert np.sum(mask == CLASSES.index(name)) >= 40


def test_later_damage_overwrites_earlier(gallery):
    artwork, shot = Artwork("ornament", "oil", 1.0, (1,)), Shot(1.0, True, (3,))
    first, second = (Damage(name, (0.0, 0.0), 0.12, (2,), 0.0) for name in ("Material loss", "Sticker"))
    _, alone = photograph(gallery, artwork, shot, [second])
    _, both = photograph(gallery, artwork, shot, [first, second])
    sticker = CLASSES.index("Sticker")
    assert np.array_equal(alone == sticker, both == sticker)
    assert CLASSES.index("Material loss") in both


def test_damage_begins_and_grows(gallery):
    artwork = Artwork("landscape", "fresco", 1.3, (1,))
    damage = Damage("Staining", (0.0, 0.0), 0.15, (2,), 0.4)
    areas = [
        np.sum(photograph(gallery, artwork, Shot(age, True, (3,)), [damage])[1] == CLASSES.index("Staining"))
        for age in (0.3, 0.5, 1.0)
    ]
    assert areas[0] == 0 < areas[1] < areas[2]


def test_half_covered_pixels_are_damaged():
    view = Pen(None, np.array([20.0, 20.0]), 20 * np.eye(2))
    sheet = Sheet(np.zeros((40, 40, 3), np.float32), view, Artwork("portrait", "oil", 1.0, ()))
    assert (sheet.mask != BACKGROUND).sum() == 20 * 20
    for reach, columns in ((10.3, 10), (10.7, 11)):
        # From x = 0 to reach / 40 in pixels, which are 20 a unit.
        x = (reach - 10) / 20
        habit = HABITS["Peel"]._replace(shapes=[[f"P w -.5,-.4 {x},-.4 {x},.4 -.5,.4"]], effects=["all 255,255,255 1"])
        damaged = sheet.paint(habit, view, np.random.default_rng(0))
        assert damaged.sum() == columns * 16


# ---- folder and command line


@pytest.mark.slow
def test_same_seed_same_bytes_in_another_process(folder, tmp_path):
    sizes = [f"--{name}={size}" for name, size in SMALL.items()]
    command = [sys.executable, "data_prep/make_demo.py", "artworks", f"--output_dir={tmp_path / 'demo'}", *sizes]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert files(tmp_path / "demo") == files(folder)


def test_another_seed_draws_other_artworks(demo, tmp_path):
    other = datasets.load_from_disk(str(make_artworks(tmp_path / "other", **LEAST, seed=1)))["train"]
    pixels = [{image.tobytes() for image in stored(split, "image")} for split in (demo["train"], other)]
    assert not pixels[0] & pixels[1]


def test_finished_folder_is_returned_and_an_unfinished_one_replaced(folder, tmp_path, monkeypatch):
    (tmp_path / "demo" / "train").mkdir(parents=True)
    (tmp_path / "demo" / "hierarchy.yaml").write_text("half")
    made = make_artworks(tmp_path / "demo", **LEAST)
    assert len(datasets.load_from_disk(str(made))["train"]) == 16
    assert (made / "hierarchy.yaml").read_bytes() == HIERARCHY.read_bytes()
    monkeypatch.setattr(sets, "Gallery", None)
    before = files(folder)
    assert make_artworks(str(folder), num_train=16, seed=9) == folder
    assert files(folder) == before


@pytest.mark.parametrize("options", [{"num_train": 15}, {"num_validation": 0}, {"seed": -1}], ids=str)
def test_impossible_arguments(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_artworks(tmp_path / "demo", **{**SMALL, **options})
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="other files"):
        make_artworks(tmp_path, **SMALL)


def test_command_line(folder, tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    main(["artworks", "--output_dir", str(folder), "--contact_sheet", str(sheet)])
    assert str(folder) in capsys.readouterr().out
    assert min(Image.open(sheet).size) > 500
