"""Publishing through the real huggingface_hub client, to a Hub on this machine; and loading back what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from huggingface_hub import ModelCard, close_session, constants
from loopback_hub import OWNER, TOKEN, LoopbackHub, loopback_hub

import train_taxonomy
from common.publish.card import MARKER
from common.publish.hub import PUBLISHED, Publisher
from common.system.files import atomic_write


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process knows, and a token for it."""
    with loopback_hub() as server:
        know(server, monkeypatch, tmp_path)
        yield server
    close_session()


def know(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let huggingface_hub, in this process, know this Hub only, and no token but that in the environment."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    # Xet, the other way of uploading, is a protocol of its own; LFS is what a Hub without it speaks.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()  # which may have been opened for other proxies


@pytest.fixture
def folder(tmp_path) -> Path:
    """An output folder with what belongs onto the Hub, and what must not go there."""
    folder = tmp_path / "my-model"
    (folder / "plots").mkdir(parents=True)
    (folder / "checkpoints" / "step_1").mkdir(parents=True)
    public = {"README.md": "---\nlicense: mit\n---\n# A model", "config.json": "{}", "modeling.py": "pass"}
    public |= {"model.safetensors": "weights", "report.html": "<html></html>", "plots/history.png": "picture"}
    private = {
        "args.yaml": "output_dir: /secret",
        "skipped_images.json": "[]",
        "checkpoints/step_1/model.safetensors": "",
    }
    for name, content in {**public, **private}.items():
        (folder / name).write_text(content)
    return folder


PUBLIC = {"README.md", "config.json", "modeling.py", "model.safetensors", "report.html", "plots/history.png"}


def publisher(folder: Path, repo_id: str | None = None, private: bool = False) -> Publisher:
    made = Publisher(folder, repo_id, private)
    made.delays = [0.01, 0.01]
    return made


def test_uploads_what_is_to_be_public_and_nothing_else(hub, folder):
    name = f"{OWNER}/my-model"
    first = publisher(folder, private=True)
    assert first.check() == name  # named as the folder, owned by whoever is logged in
    assert first.finish("the end") and first.url == f"{hub.url}/{name}"
    assert set(hub.files(name)) == PUBLIC and hub.files(name)["model.safetensors"] == b"weights"
    assert name in hub.private and hub.messages[name] == ["the end"]
    assert {file.name for file in folder.glob(".*")} == set()
    again = publisher(folder, name)
    assert again.check() == name and again.finish("again")
    assert set(hub.files(name)) == PUBLIC


def test_what_belonged_to_an_earlier_model_goes_and_what_people_wrote_stays(hub, folder):
    name, found = f"{OWNER}/my-model", publisher(folder)
    found.check()
    theirs = {"README.md": b"My own words", "notes/model.onnx": b"theirs", "data.csv": b"theirs"}
    hub.repos[name].append({**theirs, "model.onnx": b"old", "model.onnx.data": b"old", "config.json": b"old"})
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n{MARKER}\n# A model")
    assert found.finish("the end")
    assert set(hub.files(name)) == PUBLIC | set(theirs) and hub.files(name)["config.json"] == b"{}"
    assert hub.files(name)["README.md"] == b"My own words"
    (folder / "README.md").write_text("What I say of it now")  # by hand, here
    assert found.finish("again") and hub.files(name)["README.md"] == b"What I say of it now"


@pytest.mark.parametrize(
    "repo_id, token, message",
    [
        (None, None, "nobody is logged in. Run `hf auth login`, or set HF_TOKEN"),
        (None, "hf_wrong", "cannot be written to: .*401"),
        ("stranger/model", TOKEN, "cannot be written to: 403"),
        (f"{OWNER}/theirs", TOKEN, "cannot be written to: 403"),
        ("not a name!", TOKEN, "cannot be written to: Repo id must use alphanumeric"),
    ],
)
def test_what_will_not_work_is_an_error_at_once(hub, folder, monkeypatch, repo_id, token, message):
    hub.repos[f"{OWNER}/theirs"], hub.messages[f"{OWNER}/theirs"] = [{}], []
    hub.read_only.add(f"{OWNER}/theirs")
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match=f"^--push_to_hub: .*{message}") as error:
        publisher(folder, repo_id).check()
    assert TOKEN not in str(error.value) and not any("commit" in line for line in hub.log)


def test_an_unknown_licence_is_an_error_at_once(hub, folder):
    with pytest.raises(ValueError, match="--license nonsense is unknown to the Hub"):
        publisher(folder).check("nonsense")
    assert publisher(folder).check("mit") == f"{OWNER}/my-model"


def test_a_hub_that_is_not_there(folder, monkeypatch, tmp_path):
    with loopback_hub() as gone:
        pass
    know(gone, monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="--push_to_hub: my-model on http://127.0.0.1:.*refused"):
        publisher(folder).check()


@pytest.mark.parametrize("failures, arrives", [(2, True), (50, False)])
def test_upload_is_tried_again_and_a_failure_loses_nothing(hub, folder, caplog, failures, arrives):
    caplog.set_level("INFO", "common.publish.hub")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    found = publisher(folder)
    found.check()
    hub.fail = failures
    assert found.finish("the end") is arrives
    assert "trying again" in caplog.text
    assert set(hub.files(f"{OWNER}/my-model")) == (PUBLIC if arrives else set())
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    command = [line.strip() for line in caplog.text.splitlines() if line.strip().startswith("hf upload")]
    if not arrives:
        assert command[0].startswith(f"hf upload {OWNER}/my-model {folder} . --include")
        assert all(pattern in command[0] for pattern in PUBLISHED)


def test_best_models_go_up_in_the_background(hub, folder):
    """Each version is what it was when it was found, only the newest waits, and the last one arrives."""
    found, name = publisher(folder), f"{OWNER}/my-model"
    found.check()
    hub.held = threading.Event()
    for version in ("first", "second", "third"):
        with atomic_write(folder / "config.json") as file:
            file.write(version)
        found.start_upload(version)
        assert hub.waiting.wait(30)  # that of the first
    assert len(list((folder / ".upload").iterdir())) == 2  # what is being uploaded, and what waits
    hub.held.set()
    for _ in range(600):
        if len(hub.repos[name]) == 3:
            break
        time.sleep(0.05)
    assert found.finish("the end")
    assert hub.messages[name] == ["first", "third", "the end"] and hub.files(name)["config.json"] == b"third"
    assert [files["config.json"] for files in hub.repos[name][1:]] == [b"first", b"third", b"third"]
    assert not (folder / ".upload").exists()


def test_what_waits_is_replaced_by_the_end(hub, folder):
    found, name = publisher(folder), f"{OWNER}/my-model"
    found.check()
    hub.held = threading.Event()
    for version in ("first", "second"):
        found.start_upload(version)
        assert hub.waiting.wait(30)
    threading.Timer(0.2, hub.held.set).start()
    assert found.finish("the end")
    assert hub.messages[name] == ["first", "the end"]


# ---- a whole run


def online(hub: LoopbackHub, home: Path) -> dict[str, str]:
    """The environment of a process that knows this Hub only: it reads this when huggingface_hub is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    return environment | {"HF_TOKEN": TOKEN}


@pytest.mark.slow
@pytest.mark.with_report
def test_a_run_is_published_and_loads_with_transformers_alone(hub, options, tmp_path):
    words = options(push_to_hub=True, hub_model_id="fruit-tree", hub_strategy="best", license="apache-2.0")
    words += ["--num_train_epochs", "2", "--on_bad_sample", "skip", "--report_to", "tensorboard"]
    environment = online(hub, tmp_path / "home") | {"LOGLEVEL": "DEBUG", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "train_taxonomy.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    name, folder = f"{OWNER}/fruit-tree", tmp_path / "out"
    assert f"The model is at {hub.url}/{name}." in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert "token" not in (folder / "args.yaml").read_text()
    for file in folder.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file
    files = hub.files(name)
    assert {"README.md", "config.json", "model.safetensors", "report.html", "plots/history.png"} <= set(files)
    assert not any("checkpoint" in path or path in {"args.yaml", "history.jsonl"} for path in files)
    assert str(tmp_path).encode() not in files["README.md"] + files["report.html"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "image-classification"
    results = json.loads(files["all_results.json"])
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["species accuracy"] == pytest.approx(results["eval"]["levels"]["species"]["accuracy"])
    # Somebody else, who has Transformers only.
    program = f"""
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
model = AutoModelForImageClassification.from_pretrained("{name}", trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained("{name}")
from PIL import Image
image = Image.new("RGB", (40, 40), "red")
with torch.no_grad():
    output = model(**processor(image, return_tensors="pt"))
assert [scores.shape[1] for scores in output.log_probs] == [2, 4, 6]
answer = pipeline("image-classification", model="{name}", trust_remote_code=True)(image)
probability = output.logits.softmax(1).max().item()
assert abs(answer[0]["score"] - probability) < 1e-4
print("loaded", answer[0]["label"])
"""
    environment = online(hub, tmp_path / "other_home")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd="/", env=environment, capture_output=True, text=True, timeout=120
    )
    assert "loaded" in done.stdout, done.stderr[-2000:]


def test_offline_is_an_error_before_training(options, monkeypatch):
    monkeypatch.setattr(train_taxonomy, "build_model", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match="--push_to_hub needs the Hub, but HF_HUB_OFFLINE is set"):
        train_taxonomy.main(options(push_to_hub=True))
