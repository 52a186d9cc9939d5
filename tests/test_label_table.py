"""Trees from dirty tables, and labels by name."""

import random

import numpy as np
import pytest

from common.labels.encoding import encode_names, encode_paths, read_class_order
from common.labels.table import hierarchy_from_table
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE

LEVELS = ["order", "genus", "species"]


def table(*rows, levels=LEVELS):
    return {level: [row[index] for row in rows] for index, level in enumerate(levels)}


def rows_of(text):
    """``A X s / A - t`` -> lists of cells, - for a blank one."""
    return [[None if cell == "-" else cell for cell in row.split()] for row in text.split(" / ")]


def build(text, **options):
    rows = rows_of(text)
    return hierarchy_from_table(table(*rows, levels=LEVELS[: len(rows[0])]), **options)


def named(tree, labels):
    """Labels (rows, levels) as names."""
    return [
        [None if label == IGNORE else tree.names[level][label] for level, label in enumerate(row)]
        for row in labels.tolist()
    ]


def paths_of(tree):
    return [tree.path_names(*leaf) for leaf in tree.leaves]


# ---- building


def test_a_clean_table_needs_no_report():
    tree, report = build("B X t / A Y s / B X r / A Y s")
    assert report == []
    assert tree == Hierarchy(LEVELS, [["A", "B"], ["X", "Y"], ["r", "s", "t"]], [[None] * 2, [1, 0], [0, 1, 0]])


def test_order_of_the_rows_does_not_matter():
    rows = rows_of("B X t / A Y s / B X r / A - u / - Z v / B - -")
    tree, _ = hierarchy_from_table(table(*rows))
    for seed in range(5):
        assert hierarchy_from_table(table(*random.Random(seed).sample(rows, 6)))[0] == tree


def test_spelling_is_merged_to_the_most_frequent_form():
    rows = [("A", "X", "Amanita  muscaria"), ("A", "X", " Amanita muscaria"), ("a", "X", "amanita MUSCARIA")]
    tree, report = hierarchy_from_table(table(*rows, ("A", "x ", "Amanita muscaria")), first_row=2)
    assert tree.names == (("A",), ("X",), ("Amanita muscaria",))
    assert report == [
        "order: spellings merged: 'a' (row 4) into 'A'.",
        "genus: spellings merged: 'x' (row 5) into 'X'.",
        "species: spellings merged: 'amanita MUSCARIA' (row 4) into 'Amanita muscaria'.",
    ]


def test_most_frequent_counts_rows_not_different_rows():
    tree, _ = build("A X s / A x t / A x t / A x t / A X u")
    assert tree.names[1] == ("x",)


def test_a_gap_is_filled_where_the_other_rows_agree():
    tree, report = build("A X s / A - s / - X t / - - s / B Y u")
    assert paths_of(tree) == [("A", "X", "s"), ("A", "X", "t"), ("B", "Y", "u")]
    assert sorted(report) == [
        "genus: missing above 's' (row 1), filled with 'X'.",
        "genus: missing above 's' (row 3), filled with 'X'.",
        "order: missing above 'X' (row 2), filled with 'A'.",
        "order: missing above 's' (row 3), filled with 'A'.",
    ]


def test_a_gap_is_not_filled_where_they_differ():
    tree, report = build("A X s / B Y s / - - s", first_row=2)
    assert sorted(paths_of(tree), key=str) == [("A", "X", "s"), ("B", "Y", "s"), (None, None, "s")]
    assert "order: missing above 's' (row 4), not filled, there are ['A', 'B']." in report
    assert "genus: missing above 's' (row 4), not filled, there are ['X', 'Y']." in report


def test_a_level_that_has_no_value_in_any_row():
    tree, report = build("A X s / A - clean / A - clean / - - spot")
    assert ("A", None, "clean") in paths_of(tree) and (None, None, "spot") in paths_of(tree)
    assert report == [
        "order: no value above 'spot' in any row (row 3).",
        "genus: no value above 'clean', 'spot' in any row (rows 1, 2, 3).",
    ]


def test_blanks_at_the_end_are_partial_labels():
    tree, report = build("A X s / A X - / A - - / - - - / A - - / A - - / A - -")
    assert paths_of(tree) == [("A", "X", "s")]
    assert report == [
        "order: partial labels, 1 name nothing (row 3).",
        "genus: partial labels, 4 name nothing finer than 'order' (rows 2, 4, 5, ...).",
        "species: partial labels, 1 name nothing finer than 'genus' (row 1).",
    ]


def test_a_class_that_nothing_finer_is_named_under_is_a_leaf():
    tree, _ = build("A X s / A Y - / B - -")
    assert paths_of(tree) == [("A", "X", "s"), ("B", None, None), ("A", "Y", None)]


def test_one_name_under_two_parents_is_two_classes():
    tree, report = build("A X s / B X t / B X t", first_row=2)
    assert tree.names == (("A", "B"), ("X", "X"), ("s", "t")) and tree.parents[1] == ((0, 0), (0, 1))
    assert tree.display_names(1) == ["X (A)", "X (B)"]
    assert report == ["genus: 'X' stands under A (row 2) and under B (rows 3, 4): two classes."]


BLANKS = [None, "", "  ", "\t", float("nan"), np.nan, np.float64("nan")]


def test_blank_cells():
    for blank in BLANKS:
        columns = table(("A", "X", "s"), ("A", blank, "c"), ("A", "X", blank))
        tree, _ = hierarchy_from_table(columns)
        assert paths_of(tree) == [("A", None, "c"), ("A", "X", "s")]
        assert named(tree, encode_paths(tree, columns)) == [["A", "X", "s"], ["A", None, "c"], ["A", "X", None]]


def test_numeric_cells():
    """A column of numbers with blanks is read as floats."""
    for cells in [[1, 2, None], [1.0, 2.0, float("nan")], ["1", " 2", ""], [np.int64(1), 2, None]]:
        columns = {"a": ["x", "x", "x"], "b": cells}
        tree, _ = hierarchy_from_table(columns)
        assert tree.names == (("x",), ("1", "2"))
        assert encode_paths(tree, columns).tolist() == [[0, 0], [0, 1], [0, IGNORE]]
        assert encode_names(tree, cells).tolist() == [[0, 0], [0, 1], [IGNORE, IGNORE]]


def test_fractions_stay_fractions():
    assert hierarchy_from_table({"a": [0.5, 10.0]})[0].names == (("0.5", "10"),)


@pytest.mark.parametrize("text", ["A - s / B - t", "- - - / A - s"])
def test_an_empty_level(text):
    with pytest.raises(ValueError, match="'genus' is empty in every row"):
        build(text)


def test_no_rows():
    with pytest.raises(ValueError, match="'order' is empty"):
        hierarchy_from_table({"order": [], "genus": []})


def test_columns_of_different_lengths():
    with pytest.raises(ValueError):
        hierarchy_from_table({"a": ["x"], "b": ["y", "z"]})


# ---- encoding paths


TREE = Hierarchy(
    LEVELS,
    [["A", "B"], ["X", "X", "Y"], ["Clean", "s", "t", "u", "u"]],
    [[None] * 2, [0, 1, 1], [(0, 0), 0, 1, 2, 1]],
)


def test_encode_paths():
    for text, expected in [
        ("A X s", "A X s"),
        ("a x  S", "A X s"),  # case
        ("- - s", "A X s"),  # what is blank above is filled in
        ("- X t", "B X t"),
        ("B - t", "B X t"),
        ("A - Clean", "A - Clean"),
        ("- - Clean", "A - Clean"),
        ("A X -", "A X -"),  # partial labels
        ("B X -", "B X -"),
        ("- Y -", "B Y -"),
        ("B - -", "B - -"),
        ("- - -", "- - -"),
        ("B Y u", "B Y u"),
        ("- X u", "B X u"),
    ]:
        labels = encode_paths(TREE, table(*rows_of(text)))
        assert labels.dtype == np.int64 and named(TREE, labels) == rows_of(expected)


@pytest.mark.parametrize(
    "text",
    [
        "A X q",  # unknown
        "A X t",  # known, but elsewhere
        "B - s",
        "A X Clean",  # has nothing at that level
        "- X -",  # two classes
        "- - u",
        "B - u",
        "q - -",
    ],
)
def test_encode_paths_that_are_not_there(text):
    shown = text.replace(" ", " > ")
    with pytest.raises(ValueError, match=rf"not in the label tree.*'{shown}' \(rows 1, 2\)$"):
        encode_paths(TREE, table(*rows_of(f"A X s / {text} / {text}")))


def test_the_finest_name_may_count(caplog):
    """Of rows whose parents are not those of the tree: with --eval_only, the tree is another table's."""
    labels = encode_paths(TREE, table(*rows_of("A X t / q - s / A X s")), trust_finest=True)
    assert named(TREE, labels) == rows_of("B X t / A X s / A X s")
    assert "other parents for: A > X > t, q > - > s. The finest" in caplog.text
    for text in ("A X q", "q X u"):  # unknown; one of two
        with pytest.raises(ValueError, match="not in the label tree"):
            encode_paths(TREE, table(*rows_of(text)), trust_finest=True)


def test_messages_stay_short():
    rows = [["A", "X", f"q{index % 9}"] for index in range(90)]
    with pytest.raises(ValueError, match=r"'A > X > q4' \(rows 4, 13, 22, ...\); and 4 more$"):
        encode_paths(TREE, table(*rows))


def test_no_rows_to_encode():
    assert encode_paths(TREE, table(levels=LEVELS)).shape == (0, 3) == encode_names(TREE, []).shape


def test_a_row_goes_where_its_gap_went_when_the_tree_was_built():
    rows = rows_of("A P C t / A Q C t / A - C t / A - C v")
    tree, _ = hierarchy_from_table(table(*rows, levels=["a", "b", "c", "d"]))
    found = encode_paths(tree, table(*rows_of("A - - t / A P - t"), levels=["a", "b", "c", "d"]))
    assert named(tree, found) == rows_of("A - C t / A P C t")


def dirty_rows(seed):
    """Rows of two to four levels with blanks, spelling variants and names under several parents."""
    rng = random.Random(seed)
    sizes = [rng.randint(1, 3) for _ in range(rng.randint(2, 4))]

    def cell(depth):
        return None if rng.random() < 0.25 else f"{depth}{rng.choice('aA')}{rng.randrange(sizes[depth])}"

    rows = [["0", *(cell(depth) for depth in range(1, len(sizes)))] for _ in range(12)]
    rows += [[cell(depth) for depth in range(len(sizes))] for _ in range(4)]
    return [*rows, [str(depth) for depth in range(len(sizes))]]


def test_every_row_of_a_dirty_table_is_found_in_its_tree():
    for seed in range(300):
        rows = dirty_rows(seed)
        levels = [f"level {depth}" for depth in range(len(rows[0]))]
        columns = table(*rows, levels=levels)
        tree, _ = hierarchy_from_table(columns)
        for row, found in zip(rows, named(tree, encode_paths(tree, columns)), strict=True):
            finest = max((depth for depth in range(len(levels)) if row[depth]), default=-1)
            for depth in range(len(levels)):
                if row[depth]:
                    assert found[depth].casefold() == row[depth].casefold()
                assert depth <= finest or found[depth] is None


# ---- encoding names


def test_encode_names():
    for name, expected in [
        ("s", "A X s"),
        (" CLEAN ", "A - Clean"),
        ("Y", "B Y -"),
        ("A", "A - -"),
        (None, "- - -"),
        ("", "- - -"),
    ]:
        labels = encode_names(TREE, [name])
        assert labels.dtype == np.int64 and named(TREE, labels) == rows_of(expected)


@pytest.mark.parametrize("name", ["q", "X", "u"])
def test_encode_names_that_are_unknown_or_ambiguous(name):
    """X is two genera and u two species: taking one of them would be a guess."""
    with pytest.raises(ValueError, match=rf"not in the label tree.*more than once: '{name}' \(rows 1, 3\)$"):
        encode_names(TREE, ["s", name, None, name])


def test_a_leaf_goes_before_an_inner_class_of_the_same_name():
    tree, _ = build("A A - / B X A", first_row=0)
    with pytest.raises(ValueError, match="more than once"):  # two leaves
        encode_names(tree, ["A"])
    tree, _ = build("A X s / A X A")
    assert named(tree, encode_names(tree, ["A"])) == rows_of("A X A")


# ---- another classifier's classes


def test_read_class_order(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("t\n\n  CLEAN \nother\nS\ns\n", encoding="utf-8-sig")
    assert read_class_order(file, TREE, 5) == [1, 3, 0, None, None]  # of the name given twice, the first


@pytest.mark.parametrize(
    "content, outputs, message",
    [
        (None, 1, "No class-order file at .*classes.txt"),
        ("s\nt", 3, "names 2 classes, the backbone's classifier has 3 outputs"),
        ("q\nr", 2, "none of the classes of level 'species', such as 'Clean'"),
        ("", 0, "none of the classes"),
    ],
)
def test_wrong_class_orders(content, outputs, message, tmp_path):
    file = tmp_path / "classes.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_class_order(file, TREE, outputs)


def test_a_gap_is_not_filled_from_rows_that_contradict_it():
    """x has no p: filling it in from y would invent a class."""
    tree, report = build("x - s / y p s")
    assert paths_of(tree) == [("x", None, "s"), ("y", "p", "s")]
    assert any("no value above 's'" in line for line in report)
