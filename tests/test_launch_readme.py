"""The commands in launch/README.md name files that exist, and options that the scripts have."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

import train_segmentation
import train_taxonomy

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "launch" / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if re.search(r"train_\w+\.py|encoders", line)
]
SCRIPTS = {
    "train_segmentation.py": (train_segmentation, train_segmentation.SegmentationArguments),
    "train_taxonomy.py": (train_taxonomy, train_taxonomy.TaxonomyArguments),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(command)
    for word in words:
        if word.startswith(("launch/", "accelerate_configs/", "configs/")):
            assert Path(word).is_file()
    if "evaluate.sbatch" in command:
        return  # its folder is not there yet
    script = next((word for word in words if word in SCRIPTS), None)
    start = words.index(script) + 1 if script else words.index("launch/slurm/encoders.sbatch") + 1
    module, kind = SCRIPTS[script or "train_segmentation.py"]
    module.parse_arguments(kind, words[start:], "", module.DEMO_CONFIG)


def test_files_and_options_in_the_text():
    for name in re.findall(r"`((?:launch|accelerate_configs|configs)/[\w./]+)`|\]\(\.\./(\w+)\)", README):
        assert (REPOSITORY / "".join(name)).exists(), name
    for name in re.findall(r"`(\w+\.yaml)`", README):
        assert name == "args.yaml" or (REPOSITORY / "accelerate_configs" / name).is_file(), name


def test_batch_files_are_bash():
    for file in [*(REPOSITORY / "launch" / "slurm").glob("*.s*")]:
        subprocess.run(["bash", "-n", str(file)], check=True)
        for name in re.findall(r"configs/\S+\.yaml", file.read_text()):
            assert "$" in name or (REPOSITORY / name).is_file()


def test_array_covers_the_encoders():
    text = (REPOSITORY / "launch" / "slurm" / "encoders.sbatch").read_text()
    names = re.search(r"encoders=\((.*)\)", text).group(1).split()
    assert f"--array=0-{len(names) - 1}" in text
    for name in names:
        assert (REPOSITORY / "configs" / f"artefact_{name}.yaml").is_file()
