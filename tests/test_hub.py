"""Publishing through the real huggingface_hub client, to a Hub on this machine; and loading back what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from huggingface_hub import ModelCard
from loopback_hub import OWNER, TOKEN, LoopbackHub, loopback_hub

import train_taxonomy
from common.publish.hub import PUBLISHED

# Offline mode, the endpoint and the token are read when huggingface_hub is imported: a process of its own each time.
# Xet, the other way of uploading, is a protocol of its own; LFS is what a Hub without it speaks.
PROGRAM = """
import json, logging, sys
from common.publish.hub import Publisher
logging.basicConfig(level="INFO", format="%(message)s")
folder, repo_id, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
publisher = Publisher(folder, repo_id or None, options.get("private", False), delays=[0.01, 0.01])
try:
    print("checked", publisher.check(options.get("license")))
except ValueError as error:
    sys.exit(f"refused: {error}")
for name in options.get("versions", []):
    with open(f"{folder}/config.json.tmp", "w") as file:
        file.write(name)
    __import__("os").replace(f"{folder}/config.json.tmp", f"{folder}/config.json")
    publisher.start_upload(name)
print("finished", publisher.finish("the end"))
"""


pytestmark = pytest.mark.with_report


@pytest.fixture
def hub():
    with loopback_hub() as server:
        yield server


def online(hub: LoopbackHub, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """The environment of a process that knows this Hub only."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    return environment | ({"HF_TOKEN": token} if token else {})


def publish(hub, folder, home, repo_id="", token: str | None = TOKEN, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), repo_id, json.dumps(options)],
        cwd=REPOSITORY,
        env=online(hub, home, token),
        capture_output=True,
        text=True,
        timeout=120,
    )


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


def test_uploads_what_is_to_be_public_and_nothing_else(hub, folder, tmp_path):
    done = publish(hub, folder, tmp_path / "home", private=True)
    assert "finished True" in done.stdout, done.stderr
    name = f"{OWNER}/my-model"
    assert f"checked {name}" in done.stdout  # named as the folder, owned by whoever is logged in
    assert set(hub.files(name)) == PUBLIC and hub.files(name)["model.safetensors"] == b"weights"
    assert name in hub.private and hub.messages[name] == ["the end"]
    assert {file.name for file in folder.glob(".*")} == set()
    again = publish(hub, folder, tmp_path / "home", repo_id=name)
    assert "finished True" in again.stdout, again.stderr
    assert set(hub.files(name)) == PUBLIC


@pytest.mark.parametrize(
    "repo_id, token, message",
    [
        ("", None, "nobody is logged in. Run `hf auth login`, or set HF_TOKEN"),
        ("", "hf_wrong", "cannot be written to"),
        ("stranger/model", TOKEN, "cannot be written to"),
        (f"{OWNER}/theirs", TOKEN, "cannot be written to"),
        ("not a name!", TOKEN, "cannot be written to"),
    ],
)
def test_what_will_not_work_is_told_at_once(hub, folder, tmp_path, repo_id, token, message):
    hub.repos[f"{OWNER}/theirs"], hub.messages[f"{OWNER}/theirs"] = [{}], []
    hub.read_only.add(f"{OWNER}/theirs")
    done = publish(hub, folder, tmp_path / "home", repo_id, token)
    assert done.returncode and "refused: --push_to_hub: " in done.stderr and message in done.stderr
    assert TOKEN not in done.stdout + done.stderr and not any("commit" in line for line in hub.log)


def test_an_unknown_licence_is_told_at_once(hub, folder, tmp_path):
    done = publish(hub, folder, tmp_path / "home", license="nonsense")
    assert done.returncode and "refused: --license nonsense is none that the Hub knows" in done.stderr
    assert "checked" in publish(hub, folder, tmp_path / "home", license="mit").stdout


def test_a_hub_that_is_not_there(folder, tmp_path):
    with loopback_hub() as gone:
        pass
    done = publish(gone, folder, tmp_path / "home")
    assert done.returncode and "refused: --push_to_hub: my-model on http://127.0.0.1" in done.stderr


@pytest.mark.parametrize("failures, arrives", [(2, True), (50, False)])
def test_upload_is_tried_again_and_a_failure_loses_nothing(hub, folder, tmp_path, failures, arrives):
    hub.fail = failures
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    done = publish(hub, folder, tmp_path / "home")
    assert done.returncode == 0 and f"finished {arrives}" in done.stdout, done.stderr
    assert ("trying again" in done.stderr) and (set(hub.files(f"{OWNER}/my-model")) == (PUBLIC if arrives else set()))
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    if not arrives:
        command = next(line for line in done.stderr.splitlines() if line.strip().startswith("hf upload"))
        assert f"hf upload {OWNER}/my-model {folder} ." in command and all(p in command for p in PUBLISHED)


def test_best_models_go_up_in_the_background(hub, folder, tmp_path):
    """Each version is what it was when it was found, and the last one arrives."""
    versions = ["first", "second", "third"]
    done = publish(hub, folder, tmp_path / "home", versions=versions)
    assert "finished True" in done.stdout, done.stderr
    name = f"{OWNER}/my-model"
    assert hub.messages[name][-1] == "the end" and hub.files(name)["config.json"] == b"third"
    for message, files in zip(hub.messages[name][:-1], hub.repos[name][1:], strict=False):
        assert files["config.json"].decode() == message


def test_a_run_is_published_and_loads_with_transformers_alone(hub, options, tmp_path):
    words = options(push_to_hub=True, hub_model_id="fruit-tree", hub_strategy="best", license="apache-2.0")
    words += ["--num_train_epochs", "2", "--on_bad_sample", "skip"]
    environment = online(hub, tmp_path / "home") | {"LOGLEVEL": "DEBUG", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "train_taxonomy.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    name, folder = f"{OWNER}/fruit-tree", tmp_path / "out"
    assert f"The model is at {hub.url}/{name}." in done.stderr
    # The token is nowhere.
    assert TOKEN not in done.stdout + done.stderr
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


def test_offline_is_told_before_training(options, monkeypatch):
    monkeypatch.setattr(train_taxonomy, "build_model", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match="--push_to_hub needs the Hub, but HF_HUB_OFFLINE is set"):
        train_taxonomy.main(options(push_to_hub=True))


def test_options_never_hold_a_token(options, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    train_taxonomy.main(options(report_to="tensorboard"))
    assert "token" not in yaml.safe_load((tmp_path / "out" / "args.yaml").read_text())
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes()
