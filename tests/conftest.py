"""Small data and a clean process for every test: offline, one thread, no state left from the run before."""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from common.data.sampling import generators_kept, seed_sample
from common.images.encoded import EncodedImage

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


def pytest_collection_finish() -> None:
    """What the libraries made when they were imported stays, so the collector looks through all of it less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 30)


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate and torch keep state per process; every test starts without any.

    To save and load each network before its training takes a quarter of a test's run, so the two that nearly all tests
    train are left out; test_dry_run.py has them.
    """
    from common.run import dry_run  # of what imports much: not in the process that only hands out tests

    torch.set_num_threads(1)
    check = dry_run._check_saving

    def check_others(args: argparse.Namespace, model: torch.nn.Module, device: torch.device) -> None:
        if args.model_name_or_path not in ("timm/test_vit", "timm/test_resnet"):
            check(args, model, device)

    monkeypatch.setattr(dry_run, "_check_saving", check_others)
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


def no_report(request: pytest.FixtureRequest) -> bool | None:
    """Drawing takes longer than training, so only tests marked ``with_report`` have one."""
    return None if request.node.get_closest_marker("with_report") else True


@pytest.fixture
def options(fruit: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., list[str]]:
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
            "no_report": no_report(request),
            "output_dir": tmp_path / "out",
            **changes,
        }
        return words_of(settings)

    return make


@contextmanager
def counted_randomness(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Inside, augmentation draws what it draws for this sample."""
    with generators_kept():
        seed_sample(seed, epoch, index)
        yield


def words_of(settings: dict[str, object]) -> list[str]:
    """Options as words of a command line; those that are None are left out."""
    words = []
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


TILES_TREE = """levels: [binary, coarse, fine]
tree:
  clean: {~: [clean]}
  defect: {line: [scratch, crack], spot: [hole]}
classes: [clean, scratch, crack, hole]
"""


def draw_tile(rng: np.random.Generator, defects: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Grey noise with bright rows (1), dark columns (2) and red squares (3), and its mask; a margin is ignored."""
    height, width = rng.integers(44, 64, 2)
    image = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    top, left = rng.integers(4, 26, 2)
    for defect in defects:
        area = {
            1: (slice(top + 8, top + 14), slice(None)),
            2: (slice(None), slice(left + 8, left + 14)),
            3: (slice(top, top + 14), slice(left, left + 14)),
        }[defect]
        mask[area] = defect
        image[area] = np.array([(240, 240, 240), (15, 15, 15), (220, 30, 30)])[defect - 1]
    mask[:, :2] = 255
    return image, mask


def encode(pixels: np.ndarray) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def png(image: Image.Image) -> EncodedImage:
    """An image as it comes from a data set."""
    return EncodedImage(encode(np.asarray(image)))


def make_tiles(num_images: int, seed: int) -> datasets.Dataset:
    """Tiles of various sizes, every fourth one clean, with masks."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {"image": [], "mask": [], "tile": []}
    for index in range(num_images):
        image, mask = draw_tile(rng, [[], [1], [2, 3], [3]][index % 4])
        columns["image"].append({"bytes": encode(image), "path": f"{index}.png"})
        columns["mask"].append({"bytes": encode(mask), "path": f"{index}_mask.png"})
        columns["tile"].append(f"{seed}-{index // 2}")
    dataset = datasets.Dataset.from_dict(columns)
    return dataset.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: 48 training and 13 validation images with masks, and the label tree."""
    folder = tmp_path_factory.mktemp("data") / "tiles"
    datasets.DatasetDict(train=make_tiles(48, 1), validation=make_tiles(13, 2)).save_to_disk(folder)
    (folder / "hierarchy.yaml").write_text(TILES_TREE)
    return folder


SMALLEST = {
    "model_name_or_path": "timm/test_resnet",
    "no_pretrained": True,
    "image_size": 64,
    "decoder_channels": 16,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "learning_rate": 3e-3,
    "dataloader_num_workers": 0,
}
"""Options of the segmentation that tests train"""


@pytest.fixture
def dense_options(tiles: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """A command line that trains a tiny random segmentation model on tiles; as ``options``."""

    def make(**changes: object) -> list[str]:
        own = {"dataset_name": tiles, "no_report": no_report(request), "output_dir": tmp_path / "out"}
        return words_of({**SMALLEST, **own, **changes})

    return make


REPOSITORY = Path(__file__).parents[1]


def launcher(script: str, processes: int, words: list[str]) -> list[str]:
    """The command that runs a script in several processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0"]
    return [*command, "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(REPOSITORY / script), *words]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    """Runs scripts in children of a process that has imported what they need; see short_lived.py."""
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(folder.parent), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    command = [sys.executable, str(folder / "short_lived.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder.parent
    ) as process:

        def run(**request: object) -> int:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


@pytest.fixture
def launch(server: Callable[..., int], tmp_path: Path) -> Callable[[str, int, list[str]], None]:
    """Run a script in several processes, and make sure that they worked together.

    With the environment that a launcher gives them, but without its imports; test_processes.py starts one.
    """

    def run(script: str, processes: int, words: list[str]) -> None:
        said = tmp_path / "launched.txt"
        said.unlink(missing_ok=True)
        status = server(script=script.removesuffix(".py"), words=words, processes=processes, stderr=str(said))
        text = said.read_text()
        assert status == 0, text[-3000:]
        assert text.count("Results are in") == 1, "each process ran alone"
        if "--eval_only" not in words and script.startswith("train"):
            assert f"x {processes} processes x" in text

    return run
