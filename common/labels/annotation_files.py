"""Which tool wrote a file of annotations: outlines of objects, from which masks have to be drawn."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pandas as pd


def annotation_kind(path: str | Path) -> tuple[str | None, Any]:
    """``COCO``, ``LabelMe``, ``CVAT`` or ``Kaggle``, and the content, if a file holds annotations of these."""
    path, content = Path(path), None
    try:
        if path.suffix.lower() == ".xml":
            content = ElementTree.parse(path).getroot()
            return ("CVAT" if content.tag == "annotations" else None), content
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig") as file:
                runs = "EncodedPixels" in file.readline()
            return ("Kaggle", pd.read_csv(path, dtype=str)) if runs else (None, None)
        if path.suffix.lower() == ".json":
            content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, ElementTree.ParseError):
        return None, None
    keys = set(content) if isinstance(content, dict) else set()
    return "COCO" if {"images", "annotations"} <= keys else "LabelMe" if {
        "shapes",
        "imagePath",
    } <= keys else None, content


def refuse_annotations(path: str | Path) -> None:
    """ValueError with the command that makes masks of a file of annotations."""
    kind, _ = annotation_kind(path)
    if kind:
        raise ValueError(
            f"{path} holds annotations as {kind} writes them; masks have to be drawn of them: "
            f"python data_prep/prepare_table.py --annotations {path} --taxonomy TREE.yaml --image_root IMAGES "
            "--output_dir DATA; then --dataset_name DATA."
        )
