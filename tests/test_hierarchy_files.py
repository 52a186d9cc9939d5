"""Label trees from files that people write, good and bad."""

import pytest

from common.labels.hierarchy_files import load_hierarchy
from common.model.hierarchy import Hierarchy

TREE = Hierarchy(
    ["binary", "coarse", "fine"],
    [["clean", "damaged"], ["loss", "stain"], ["Clean", "crack", "dust", "hole"]],
    [[None] * 2, [1, 1], [(0, 0), 0, 1, 0]],
)
CSV = "binary,coarse,fine\nclean,,Clean\ndamaged,loss,crack\ndamaged,stain,dust\ndamaged,loss,hole\n"
YAML = """
levels: [binary, coarse, fine]
tree:
  clean:
    ~: [Clean]
  damaged:
    loss: [crack, hole]
    stain: [dust]
"""
ORDER = "classes: [Clean, crack, dust, hole]\n"


def write(tmp_path, name, content, encoding="utf-8"):
    path = tmp_path / name
    path.write_text(content, encoding=encoding)
    return path


# ---- good files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    "name, content",
    [
        ("tree.csv", CSV),
        ("tree.tsv", CSV.replace(",", "\t")),
        ("tree.CSV", CSV.replace("\n", "\r\n")),
        ("tree.csv", CSV.replace("crack", '"crack"') + "\n"),
        ("tree.csv", CSV + "damaged,loss,crack\n"),  # a row of a data set rather than of a leaf
        ("tree.yaml", YAML + ORDER),
        ("tree.yml", YAML + ORDER),
    ],
)
def test_formats(name, content, encoding, tmp_path):
    tree, report = load_hierarchy(write(tmp_path, name, content, encoding))
    assert tree == TREE
    assert report in ([], ["coarse: no value above 'Clean' in any row (row 2)."])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json(encoding, tmp_path):
    TREE.save(tmp_path / "tree.json")
    text = (tmp_path / "tree.json").read_text(encoding="utf-8")
    tree, report = load_hierarchy(write(tmp_path, "again.json", text, encoding))
    assert tree == TREE and report == []


def test_yaml_keeps_the_order_in_which_it_is_written(tmp_path):
    tree, _ = load_hierarchy(write(tmp_path, "tree.yaml", YAML))
    assert tree.names[2] == ("Clean", "crack", "hole", "dust") and tree.names[1] == ("loss", "stain")


def test_yaml_shapes(tmp_path):
    """Names alone, nested, of numbers, quoted; classes of upper levels without anything under them."""
    text = "levels: [a, b]\ntree:\n  x: {p: , q: []}\n  y: [1, 'no', ' r  s ']\n  z:\n"
    tree, _ = load_hierarchy(write(tmp_path, "tree.yaml", text))
    assert [tree.path_names(*leaf) for leaf in tree.leaves] == [
        ("x", "p"),
        ("x", "q"),
        ("y", "1"),
        ("y", "no"),
        ("y", "r s"),
        ("z", None),
    ]
    flat, _ = load_hierarchy(write(tmp_path, "flat.yaml", "levels: [a]\ntree: [x, y]"))
    assert flat == Hierarchy(["a"], [["x", "y"]], [[None, None]])


def test_columns_to_use(tmp_path):
    path = write(tmp_path, "tree.csv", "fine,id,coarse\ncrack,1,loss\nhole,2,loss\n")
    tree, _ = load_hierarchy(path, levels=["coarse", "fine"])
    assert tree == Hierarchy(["coarse", "fine"], [["loss"], ["crack", "hole"]], [[None], [0, 0]])


def test_short_rows_are_partial(tmp_path):
    tree, report = load_hierarchy(write(tmp_path, "tree.csv", "a,b\nx,s\ny\n"))
    assert tree.leaf_names() == ["s", "y"] and report == ["b: partial labels, 1 name nothing finer than 'a' (row 3)."]


def test_the_report_counts_lines_of_the_file(tmp_path):
    _, report = load_hierarchy(write(tmp_path, "tree.csv", CSV + "Damaged,loss,hole\n"))
    assert "binary: spellings merged: 'Damaged' (row 6) into 'damaged'." in report


# ---- bad files


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("tree.ods", "a", "ending is none of .json"),
        # CSV
        ("tree.csv", "", "no rows"),
        ("tree.csv", "a,b\n", "no rows"),
        ("tree.csv", "a,b\nx,\n", "'b' is empty in every row"),
        ("tree.csv", "a,a\nx,y\n", "listed twice.*'a "),
        ("tree.csv", "a,b\nx,s\ny,s\n", "leaf stands under two parents: x > s and y > s"),
        ("tree.csv", "a,b,c\nx,,s\ny,p,S\n,,s\n", "under two parents: .*y > p > s"),
        # YAML
        ("tree.yaml", "", "needs the keys 'levels'"),
        ("tree.yaml", "- a\n- b", "needs the keys 'levels'"),
        ("tree.yaml", "levels: [a]", "needs the keys"),
        ("tree.yaml", "levels: [a]\ntree: [x]\nclases: [x]", r"unknown keys \['clases'\]"),
        ("tree.yaml", "levels: [a]\ntree: [x", "expected"),
        ("tree.yaml", "levels: 3\ntree: [x]", "'levels' must be a list of names, not 3"),
        ("tree.yaml", "levels: abc\ntree: [x]", "'levels' must be a list of names, not 'abc'"),
        ("tree.yaml", "levels: []\ntree: [x]", "only 0 levels"),
        ("tree.yaml", "levels: [a, a]\ntree: {x: [y]}", "no level twice"),
        ("tree.yaml", "levels: [a]\ntree:", "'a' .*no class"),
        ("tree.yaml", "levels: [a, b]\ntree: [x, y]", "'b' .*no class"),
        ("tree.yaml", "levels: [a]\ntree: x", "'x' under .* is neither a list"),
        ("tree.yaml", "levels: [a]\ntree: {x: [y]}", r"\['x'\] has something under it, but there are only 1 levels"),
        ("tree.yaml", "levels: [a, b]\ntree:\n  x: [p]\n  x: [q]", r"line 3: listed twice: \['x'\]"),
        ("tree.yaml", "levels: [a]\nlevels: [b]\ntree: [x]", r"line 1: listed twice: \['levels'\]"),
        ("tree.yaml", "levels: [a, b]\ntree: {x: [p, p]}", "listed twice: .*x > p"),
        ("tree.yaml", "levels: [a, b]\ntree: {x: [p, ' P']}", "two parents: x > p and x > P"),
        ("tree.yaml", "levels: [a, b]\ntree: {x: [p], y: [p]}", "under two parents: x > p and y > p"),
        ("tree.yaml", "levels: [a, b]\ntree: {x: [no, yes]}", "False is not a name; put it in quotes"),
        ("tree.yaml", "levels: [a, b]\ntree:\n  no: [p]", "False is not a name"),
        ("tree.yaml", "levels: [a, b]\ntree: {x: [{y: z}]}", "is not a name"),
        ("tree.yaml", "levels: [a, b]\ntree: {x: ['  ']}", "name is blank"),
        ("tree.yaml", "levels: [a, b]\ntree: {x: [2020-01-01]}", "is not a name"),
        ("tree.yaml", "levels: [a, b]\ntree: {? [x, y] : [p]}", "unhashable"),
        # YAML with an order
        ("tree.yaml", YAML + "classes: [Clean, crack, dust, hole, mould]", r"not in the tree \['mould'\]"),
        ("tree.yaml", YAML + "classes: [Clean, crack, dust]", r"not in 'classes' \['hole'\]"),
        ("tree.yaml", YAML + "classes: [Clean, crack, dust, hole, dust]", r"listed twice \['dust'\]"),
        ("tree.yaml", YAML + "  other: {third: [dust]}\n" + ORDER, r"listed twice \['dust'\]"),
        ("tree.yaml", YAML + "  other:\n" + ORDER, "level 'fine', but .* nothing there for .*'other'"),
        ("tree.yaml", YAML + "classes: 4", "'classes' must be a list of names, not 4"),
        ("tree.yaml", YAML + "classes: crack", "'classes' must be a list of names"),
        # JSON
        ("tree.json", "", "Expecting value"),
        ("tree.json", "[1, 2]", "needs the keys levels, names and parents"),
        ("tree.json", "7", "needs the keys"),
        ("tree.json", '{"levels": 3, "names": {}, "parents": {}}', "levels must be lists"),
        (
            "tree.json",
            '{"levels": ["a"], "names": {"a": ["x"]}, "parents": {"a": [0]}}',
            "not a class of a level above",
        ),
    ],
)
def test_bad_files(name, content, message, tmp_path):
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_hierarchy(path)
    assert str(path) in str(caught.value)


def test_missing_file_folder_and_column(tmp_path):
    for path in (tmp_path / "tree.csv", tmp_path):
        with pytest.raises(ValueError, match="No hierarchy file at"):
            load_hierarchy(path)
    with pytest.raises(ValueError, match=r"no column \['grob'\]; the columns are \['binary', 'coarse', 'fine'\]"):
        load_hierarchy(write(tmp_path, "tree.csv", CSV), levels=["grob", "fine"])


@pytest.mark.parametrize("name", ["tree.yaml", "tree.json"])
def test_other_encodings_are_named(name, tmp_path):
    with pytest.raises(ValueError, match="utf-8"):
        load_hierarchy(write(tmp_path, name, "R\u00f6hrling", encoding="latin-1"))


def test_a_saved_tree_may_tell_leaves_apart_by_their_paths(tmp_path):
    """Level columns can; a run's own hierarchy.json must load again."""
    tree = Hierarchy(["a", "b"], [["x", "y"], ["s", "s"]], [[None, None], [0, 1]])
    tree.save(tmp_path / "tree.json")
    assert load_hierarchy(tmp_path / "tree.json")[0] == tree
