"""Small data and a clean process for every test: offline, one thread, no state left from the run before."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

LEVELS = ["order", "family", "species"]
PATHS = [
    ("Round", "Red", "cherry"),
    ("Round", "Red", "apple"),
    ("Round", "Green", "lime"),
    ("Long", "Yellow", "banana"),
    ("Long", "Yellow", "maize"),
    ("Long", "White", "leek"),
]
COLORS = [(200, 20, 30), (230, 70, 60), (60, 200, 60), (230, 220, 40), (200, 180, 80), (240, 240, 230)]


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate and torch keep state per process; every test starts without any."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    yield
    for state in (GradientState, AcceleratorState, PartialState):
        state._reset_state()
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the test run's caches out of the user's."""
    folder = tmp_path_factory.mktemp("hf_home")
    before = os.environ.get("HF_HOME")
    os.environ["HF_HOME"] = str(folder)
    yield folder
    os.environ.pop("HF_HOME") if before is None else os.environ.update(HF_HOME=before)


def draw(label: int, rng: np.random.Generator) -> bytes:
    """A JPEG of a blob in the class's colour; the order is its shape."""
    width, height = rng.integers(20, 40, 2)
    pixels = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
    rows, columns = (slice(4, -4), slice(4, -4)) if PATHS[label][0] == "Round" else (slice(8, 12), slice(1, -1))
    pixels[rows, columns] = np.clip(np.array(COLORS[label]) + rng.integers(-12, 12, 3), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def make_split(num_images: int, seed: int) -> datasets.Dataset:
    """Images with three level columns; every seventh is labelled to the family only."""
    rng = np.random.default_rng(seed)
    labels = [index % len(PATHS) for index in range(num_images)]
    columns: dict[str, list] = {name: [PATHS[label][level] for label in labels] for level, name in enumerate(LEVELS)}
    columns["species"] = [None if index % 7 == 3 else name for index, name in enumerate(columns["species"])]
    columns["image"] = [{"bytes": draw(label, rng), "path": f"{index}.jpg"} for index, label in enumerate(labels)]
    columns["tree"] = [f"{seed}-{index // 2}" for index in range(num_images)]
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


@pytest.fixture(scope="session")
def fruit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: 96 training and 41 validation images, three levels, six leaves."""
    folder = tmp_path_factory.mktemp("data") / "fruit"
    datasets.DatasetDict(train=make_split(96, 1), validation=make_split(41, 2)).save_to_disk(folder)
    return folder


@pytest.fixture
def options(fruit: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A command line that trains a tiny random model on fruit; keyword arguments are options, None removes one."""

    def make(**changes: object) -> list[str]:
        settings: dict[str, object] = {
            "dataset_name": fruit,
            "level_columns": LEVELS,
            "model_name_or_path": "timm/test_vit",
            "no_pretrained": True,
            "image_size": 32,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 1,
            "learning_rate": 3e-3,
            "dataloader_num_workers": 0,
            "output_dir": tmp_path / "out",
            **changes,
        }
        words = []
        for name, value in settings.items():
            if value is not None:
                words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return words

    return make
