"""predict.py: the same numbers as evaluation, whatever the images come as, and however often it is killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LEVELS, words_of
from PIL import Image

import predict
import train_taxonomy
from common.data.splits import LabelColumns
from common.model.backbones import load_backbone
from common.model.modeling import LabelTreeForImageClassification
from common.predict.parts import PredictionParts
from common.publish.models import image_processor, save_model


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv").sort_values("row", ignore_index=True)


def train(fruit: Path, folder: Path, **changes: object) -> Path:
    settings = {
        "dataset_name": fruit,
        "level_columns": LEVELS,
        "model_name_or_path": "timm/test_vit",
        "no_pretrained": True,
        "image_size": 32,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 3e-3,
        "dataloader_num_workers": 0,
        "no_report": True,
        "save_predictions": True,
        "output_dir": folder,
        **changes,
    }
    train_taxonomy.main(words_of(settings))
    return folder


def build(fruit: Path, folder: Path, head: str, **evaluation: object) -> Path:
    """A model that was never trained, but answers differently from image to image."""
    torch.manual_seed(0)
    tree, _ = LabelColumns(LEVELS).read_hierarchy(datasets.load_from_disk(fruit)["train"])
    backbone, _ = load_backbone("timm/test_vit", pretrained=False, image_size=32)
    evaluation = {"resize_mode": "center", "crop_pct": 1.0, "decoding": "leaf", **evaluation}
    model = LabelTreeForImageClassification.build(backbone, tree, head, evaluation=evaluation)
    torch.nn.init.normal_(model.heads.weight)
    folder.mkdir()
    save_model(model, image_processor(backbone.spec, evaluation["resize_mode"], evaluation["crop_pct"]), folder)
    return folder


def evaluate(fruit: Path, model: Path, folder: Path) -> Path:
    """The evaluation of a saved model by the script that trains it."""
    words = {"eval_only": True, "model_name_or_path": model, "dataset_name": fruit, "output_dir": folder}
    train_taxonomy.main(words_of({**words, "save_predictions": True, "dataloader_num_workers": 0, "no_report": True}))
    return folder


@pytest.fixture(scope="module")
def model(fruit, tmp_path_factory) -> Path:
    """A small trained classifier, and what it predicted when it was evaluated."""
    return train(fruit, tmp_path_factory.mktemp("model") / "out")


@pytest.fixture(scope="module")
def photos(fruit, tmp_path_factory) -> Path:
    """The validation images as files, a table with their labels, and two files that are broken."""
    folder = tmp_path_factory.mktemp("photos")
    rows = datasets.load_from_disk(fruit)["validation"].cast_column("image", datasets.Image(decode=False))
    for index, row in enumerate(rows):
        (folder / f"{index:03}.jpg").write_bytes(row["image"]["bytes"])
    table = pd.DataFrame({name: rows[name] for name in [*LEVELS, "tree"]})
    table.insert(0, "file", [f"{index:03}.jpg" for index in range(len(rows))])
    table.to_csv(folder / "table.csv", index=False)
    return folder


@pytest.fixture
def command(model, tmp_path):
    """A command line; keyword arguments are options, None removes one."""

    def make(*inputs: object, model: Path = model, **changes: object) -> list[str]:
        settings = {"dataloader_num_workers": 0, "output_dir": tmp_path / "out", **changes}
        return [str(model), *map(str, inputs), *words_of(settings)]

    return make


# ---- the same as evaluation


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": "independent", "resize_mode": "squash"},
        {"head": "tree", "crop_pct": 0.8, "decoding": "levels"},
    ],
)
def test_equals_evaluation(fruit, model, command, tmp_path, changes):
    saved = evaluated = model
    if changes:
        saved = build(fruit, tmp_path / "model", **changes)
        evaluated = evaluate(fruit, saved, tmp_path / "evaluated")
    summary = predict.main(
        command(fruit, model=saved, split="validation", per_device_eval_batch_size=7, format=["csv", "jsonl"])
    )
    expected = pd.read_parquet(evaluated / "predictions.parquet")
    ours = read(tmp_path / "out")
    for level in LEVELS:
        assert ours[level].tolist() == expected[f"{level}_best_path"].tolist()
        np.testing.assert_allclose(
            ours[f"{level}_probability"], expected[f"{level}_best_path_probability"], atol=1.5e-6
        )
    assert ours[[f"top{place}" for place in range(1, 6)]].to_numpy().tolist() == [
        list(row) for row in expected["top5_leaves"]
    ]
    results = json.loads((evaluated / "all_results.json").read_text())["eval"]["levels"]
    assert summary["predictions"]["accuracy"] == pytest.approx({level: results[level]["accuracy"] for level in LEVELS})
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").open()]
    assert [line["levels"]["species"]["name"] for line in lines] == ours["species"].tolist()


def test_files_tables_and_data_sets_are_the_same(fruit, photos, command, tmp_path):
    predict.main(command(fruit, split="validation", output_dir=tmp_path / "set"))
    predict.main(command(photos, output_dir=tmp_path / "folder", dataloader_num_workers=2))
    predict.main(command(photos / "0*.jpg", output_dir=tmp_path / "pattern", per_device_eval_batch_size=3))
    predict.main(command(photos / "table.csv", image_column="file", output_dir=tmp_path / "table"))
    expected = read(tmp_path / "set")
    assert {"species_right", "order_right"} <= set(expected.columns)
    columns = [name for name in expected.columns if name != "image" and not name.endswith("_right")]
    for name in ("folder", "pattern", "table"):
        pd.testing.assert_frame_equal(read(tmp_path / name)[columns], expected[columns], atol=2e-6)
    assert read(tmp_path / "folder")["image"].tolist() == [str(photos / f"{index:03}.jpg") for index in range(41)]
    assert read(tmp_path / "table")["image"].tolist() == [f"{index:03}.jpg" for index in range(41)]
    assert "species_right" not in read(tmp_path / "folder").columns


@pytest.mark.slow
def test_two_processes_equal_one(photos, command, tmp_path, launch):
    predict.main(command(photos / "table.csv", image_column="file", group_by="tree", output_dir=tmp_path / "one"))
    words = command(photos / "table.csv", image_column="file", group_by="tree", output_dir=tmp_path / "two")
    launch("predict.py", 2, [*words, "--mixed_precision", "no"])
    for file in ("predictions.csv", "groups.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


# ---- back-off


def test_min_confidence(photos, command, tmp_path):
    table = photos / "table.csv"
    summary = predict.main(command(table, image_column="file", min_confidence=0.6))
    ours = read(tmp_path / "out")
    counts = dict.fromkeys([*LEVELS, None], 0)
    for _, row in ours.iterrows():
        level = next((level for level in reversed(LEVELS) if row[f"{level}_probability"] >= 0.6), None)
        counts[level] += 1
        text = {None: "not identified", "species": row["species"]}.get(level, f"{level} {row.get(level)}")
        assert row["answer"] == text
        assert level is None or row["answer_level"] == level and row["answer_probability"] >= 0.6
    assert len([level for level in counts.values() if level]) >= 2, "the test needs answers at several levels"
    answers = summary["predictions"]["answers"]
    assert {level: answers[level]["num_answered"] for level in LEVELS} == {level: counts[level] for level in LEVELS}
    given = ours[ours["answer_level"].notna()]
    assert answers["all"]["coverage"] == len(given) / 41
    judged = given["answer_right"].dropna()
    assert answers["all"]["precision"] == pytest.approx((judged == True).mean())  # noqa: E712


def test_target_precision_uses_what_evaluation_stored(fruit, model, command, tmp_path):
    stored = json.loads((model / "config.json").read_text())["calibration"]
    target = max(
        target
        for index, target in enumerate(stored["targets"])
        if any(column[index] is not None for column in stored["thresholds"])
    )
    index = stored["targets"].index(target)
    summary = predict.main(command(fruit, split="validation", target_precision=target - 0.01))
    for level, answers in summary["predictions"]["answers"].items():
        if level != "all":
            assert answers["coverage"] == pytest.approx(stored["coverage"][LEVELS.index(level)][index], abs=1e-4)
    assert summary["predictions"]["answers"]["all"]["precision"] >= target
    assert list(summary["thresholds"].values()) == [column[index] for column in stored["thresholds"]]


def test_a_model_without_calibration_says_how_to_get_one(fruit, model, photos, command, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    config = json.loads((bare / "config.json").read_text())
    stored = config.pop("calibration")
    (bare / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no calibration.*--eval_only.*--calibration"):
        predict.main(command(photos, model=bare, target_precision=0.5))
    again = evaluate(fruit, bare, tmp_path / "again")
    assert json.loads((again / "calibration.json").read_text()) == stored
    predict.main(command(photos, model=bare, target_precision=0.5, calibration=again / "calibration.json"))
    with pytest.raises(ValueError, match=r"no level.*41 calibration images cannot show 99.0%.*on more than 3"):
        predict.main(command(photos, model=bare, target_precision=0.99, calibration=again / "calibration.json"))


def test_leaves_ranked_by_distance_in_the_tree(fruit, command, tmp_path):
    """Expected distances as defined: over all leaves, the height of the lowest common ancestor."""
    saved = build(fruit, tmp_path / "model", head="tree")
    words = {"split": "validation", "top_k": 6, "format": ["jsonl"]}
    predict.main(command(fruit, model=saved, rank_by="distance", **words))
    tree = LabelTreeForImageClassification.from_pretrained(saved).hierarchy
    paths, names = tree.ancestors.tolist(), tree.leaf_names()

    def height(first: str, second: str) -> int:
        pair = zip(paths[names.index(first)], paths[names.index(second)], strict=True)
        return len(LEVELS) - 1 - max((level for level, (one, two) in enumerate(pair) if one == two), default=-1)

    for line in map(json.loads, (tmp_path / "out" / "predictions.jsonl").open()):
        chances = {entry["leaf"]: entry["probability"] for entry in line["top"]}
        found = [sum(chances[other] * height(leaf, other) for other in names) for leaf in chances]
        assert len(found) == 6 and found == pytest.approx(sorted(found), abs=1e-5)


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=pytest.mark.slow), torch.float16])
def test_a_model_saved_in_half_precision(fruit, command, tmp_path, dtype):
    saved = build(fruit, tmp_path / "model", head="tree")
    half = tmp_path / "half"
    shutil.copytree(saved, half)
    LabelTreeForImageClassification.from_pretrained(saved).to(dtype).save_pretrained(half)
    assert json.loads((half / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    words = {"split": "validation", "top_k": 6}
    predict.main(command(fruit, model=saved, output_dir=tmp_path / "whole", **words))
    summary = predict.main(command(fruit, model=half, **words))
    ours, expected = read(tmp_path / "out"), read(tmp_path / "whole")
    np.testing.assert_allclose(ours["species_probability"], expected["species_probability"], atol=0.03)
    results = json.loads((evaluate(fruit, half, tmp_path / "evaluated") / "all_results.json").read_text())["eval"]
    for level in LEVELS:
        assert summary["predictions"]["accuracy"][level] == pytest.approx(results["levels"][level]["accuracy"])


def test_doubtful_labels_are_listed(photos, command, tmp_path):
    table = pd.read_csv(photos / "table.csv", dtype=str)
    predict.main(command(photos / "table.csv", image_column="file", output_dir=tmp_path / "first"))
    first = read(tmp_path / "first").set_index("image")
    rights = first[[f"{level}_right" for level in LEVELS]]
    sure = first[first.species_right.eq(True)].nlargest(2, "species_probability").index
    other = table.loc[table.order != first.order[sure[0]], LEVELS].iloc[0]
    table.loc[table.file == sure[0], LEVELS] = other.tolist()  # wrong from the root on
    table.loc[table.file == sure[1], LEVELS] = None
    table.to_csv(photos / "doubtful.csv", index=False)
    words = command(photos / "doubtful.csv", image_column="file", review=tmp_path / "review.csv", group_by="tree")
    predict.main(words)
    found = pd.read_csv(tmp_path / "review.csv")
    wrong = found[found.reason == "mislabelled"]
    assert wrong.score.is_monotonic_decreasing and len(wrong) == rights.eq(False).any(axis=1).sum() + 1
    planted = wrong[wrong.image == sure[0]].iloc[0]
    assert planted.level == "order" and planted.predicted == first.order[sure[0]]
    assert planted.score == pytest.approx(first.order_probability[sure[0]], abs=1e-5)
    unknown = found[found.reason == "unlabelled"].set_index("image").score
    assert len(unknown) == rights.isna().all(axis=1).sum() + 1 and unknown.is_monotonic_decreasing
    assert unknown[sure[1]] == pytest.approx(1 - first.top1_probability[sure[1]], abs=1e-5)


# ---- groups


def test_groups_average_probabilities(photos, model, command, tmp_path):
    table = pd.read_csv(photos / "table.csv")
    table.loc[40, "tree"] = None
    table.sample(frac=1, random_state=0).to_csv(photos / "shuffled.csv", index=False)
    predict.main(command(photos / "shuffled.csv", image_column="file", group_by="tree", min_confidence=0.5, top_k=6))
    images, groups = read(tmp_path / "out"), pd.read_csv(tmp_path / "out" / "groups.csv")
    assert len(images) == 41 and len(groups) == 20 and (groups["num_images"] == 2).all()
    for _, group in groups.iterrows():
        members = images[images["group"] == group["group"]]
        chances = {}
        for _, row in members.iterrows():
            for place in range(1, 7):
                name = row[f"top{place}"]
                chances[name] = chances.get(name, 0) + row[f"top{place}_probability"] / len(members)
        best = max(chances, key=chances.get)
        assert group["species"] == best
        assert group["species_probability"] == pytest.approx(chances[best], abs=3e-6)


def test_groups_of_independent_levels(fruit, photos, command, tmp_path):
    """Levels are averaged each on its own; a group of one is as its photograph."""
    built = build(fruit, tmp_path / "model", head="independent")
    predict.main(command(photos / "table.csv", model=built, image_column="file", group_by="file"))
    images, groups = read(tmp_path / "out"), pd.read_csv(tmp_path / "out" / "groups.csv")
    pd.testing.assert_frame_equal(
        images.drop(columns=["row", "image"]), groups.drop(columns="num_images"), check_dtype=False, atol=2e-6
    )


# ---- kills, broken files, mistakes


def test_a_kill_loses_no_more_than_a_part(photos, command, tmp_path, monkeypatch):
    words = command(photos / "table.csv", image_column="file", group_by="tree")
    predict.main(command(photos / "table.csv", image_column="file", group_by="tree", output_dir=tmp_path / "whole"))
    plain = PredictionParts.write
    written = []

    def killed(self, part, lines):
        if len(written) % 6 == 5:
            written.append(None)
            raise KeyboardInterrupt
        written.append(part)
        plain(self, part, lines)

    monkeypatch.setattr(PredictionParts, "write", killed)
    kills = 0
    while True:
        try:
            predict.main(words)
            break
        except KeyboardInterrupt:
            kills += 1
            assert not (tmp_path / "out" / "predictions.csv").exists()
    assert kills >= 3
    done = [part for part in written if part is not None]
    assert len(done) == len(set(done)), "a part was done twice"
    for file in ("predictions.csv", "groups.csv", "summary.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    monkeypatch.setattr(PredictionParts, "write", lambda *_: pytest.fail("nothing is left to do"))
    assert predict.main(words)["num_images"] == 41
    with pytest.raises(ValueError, match="differ in: --top_k"):
        predict.main([*words, "--top_k", "3"])


def test_a_kill_while_merging(photos, command, tmp_path, monkeypatch):
    words = command(photos)
    finish = PredictionParts.finish
    monkeypatch.setattr(PredictionParts, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        predict.main(words)
    monkeypatch.setattr(PredictionParts, "finish", finish)
    assert predict.main(words)["num_images"] == 41
    assert len(read(tmp_path / "out")) == 41 and not (tmp_path / "out" / "parts").exists()


def test_broken_images_are_listed(photos, command, tmp_path, capfd):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "003.jpg").write_bytes(b"no image")
    (folder / "007.jpg").write_bytes((folder / "007.jpg").read_bytes()[:300])
    table = pd.read_csv(folder / "table.csv")
    table.loc[5, "file"] = "../outside.jpg"
    table.loc[6, "file"] = "gone.jpg"
    table.to_csv(folder / "table.csv", index=False)
    words = command(folder / "table.csv", image_column="file", per_device_eval_batch_size=2, group_by="tree")
    summary = predict.main(words)
    assert summary["num_broken"] == 4 and summary["predictions"]["num"] == 37
    problems = pd.read_csv(tmp_path / "out" / "problems.csv")
    assert problems["row"].tolist() == [3, 5, 6, 7]
    assert problems["image"].tolist() == ["003.jpg", "../outside.jpg", "gone.jpg", "007.jpg"]
    assert problems["kind"].tolist() == ["broken", "outside of the root", "missing", "broken"]
    assert problems["problem"][0] == "not an image, or of an unknown format"
    groups = pd.read_csv(tmp_path / "out" / "groups.csv")
    assert len(groups) == 20 and sorted(groups["num_images"])[:3] == [1, 1, 1]  # 6 and 7 are one group
    assert "4 of 41 images are broken" in capfd.readouterr().err


def test_nothing_but_broken_images(photos, command, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    for _ in range(2):  # the second time it is finished already
        with pytest.raises(ValueError, match="None of the 1 images could be read; problems.csv says why"):
            predict.main(command(tmp_path / "bad.jpg", min_confidence=0.5))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_broken"] == 1 and summary["predictions"]["num"] == 0
    assert summary["predictions"].get("answers") is None


def test_results_below_the_images_are_no_images(photos, command, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("000.jpg", "001.jpg"):
        shutil.copy(photos / name, folder)
    monkeypatch.chdir(folder)
    words = command(".", output_dir="predictions")
    assert predict.main(words) == predict.main(words) and read(folder / "predictions").shape[0] == 2


def test_images_larger_than_the_limit(photos, command, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # as it was, afterwards
    Image.new("RGB", (60, 50)).save(tmp_path / "large.png")
    words = command(tmp_path / "large.png", photos / "000.jpg")
    assert predict.main([*words, "--max_image_pixels", "2999"])["num_broken"] == 1
    assert "exceeds limit" in pd.read_csv(tmp_path / "out" / "problems.csv")["problem"][0]
    words[words.index("--output_dir") + 1] = str(tmp_path / "again")
    assert predict.main([*words, "--max_image_pixels", "3000"])["num_broken"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/no/model"}, "Cannot load the model /no/model"),
        ({"model": "{photos}"}, "Cannot load the model|holds no model"),
        ({"min_confidence": 0.5, "target_precision": 0.5}, "choose one"),
        ({"min_confidence": 1.5}, "from 0 up to 1"),
        ({"format": ["xml"]}, "csv, jsonl, coco, geojson, not xml"),
        ({"group_by": "tree"}, "no column 'tree': the inputs are image files"),
        ({"level_columns": ["a"]}, "a column for each of the levels order, family, species"),
        ({"target_precision": 0.999}, "up to 0.99, not 0.999"),
        ({"topk": 3}, "Unknown option --topk. Did you mean --top_k"),
        ({"output_dir": "{photos}"}, "holds other files"),
        ({"mixed_precision": "fp16"}, "needs a GPU"),
        ({"calibration": "/no/file", "target_precision": 0.9}, "Cannot read the calibration /no/file"),
    ],
)
def test_mistakes(photos, command, changes, message):
    if torch.cuda.is_available() and "mixed_precision" in changes:
        pytest.skip("there is a GPU")
    changes = {
        name: value.format(photos=photos) if isinstance(value, str) else value for name, value in changes.items()
    }
    before = sorted(photos.iterdir())
    with pytest.raises(ValueError, match=message):
        predict.main(command(photos, **changes))
    assert sorted(photos.iterdir()) == before


def test_settings_without_effect_are_told(photos, command, capfd):
    predict.main(command(photos, image_column="file", calibration="some.json", split="test"))
    told = capfd.readouterr().err
    for words in ("--image_column has no effect", "--calibration has no effect", "--split has no effect"):
        assert words in told


def test_calibration_is_of_the_saved_model(fruit, tmp_path):
    """Not of the last epoch's, if an earlier one was better."""
    folder = train(fruit, tmp_path / "out", num_train_epochs=3, learning_rate=2e-2, ema_decay=0.5)
    trained = LabelTreeForImageClassification.from_pretrained(folder).config.calibration
    again = evaluate(fruit, folder, tmp_path / "again")
    assert json.loads((again / "calibration.json").read_text()) == trained


def test_features_of_images(photos, command, model, tmp_path):
    """The model's heads find in them what was predicted."""
    predict.main(command(photos / "table.csv", image_column="file", features=tmp_path / "features.parquet"))
    table, ours = pd.read_parquet(tmp_path / "features.parquet"), read(tmp_path / "out")
    assert table["image"].tolist() == ours["image"].tolist()
    saved = LabelTreeForImageClassification.from_pretrained(model)
    leaves = saved.heads(torch.tensor(np.stack(table["features"]))).argmax(1).tolist()
    assert [saved.config.id2label[leaf] for leaf in leaves] == ours["top1"].tolist()
