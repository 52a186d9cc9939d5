"""The batch files on a real Slurm: a cluster of two nodes that the tests start in a folder of their own.

One trains for real. The others, which look at every way a job may end, run with TEST_SLURM=1 in the environment:
Slurm's own delays make them take ten minutes. All need Slurm's and munge's programs, for example by ``apt-get install
slurm-wlm munge``, but no set-up or privileges.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
FILES = REPOSITORY / "launch" / "slurm"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
SchedulerParameters=batch_sched_delay=0,sched_interval=2
KillWait=20
MinJobAge=7200
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""

# What the trainers promise, without training: counts steps, resumes, and ends as it is told to.
STAND_IN = r"""
import argparse, hashlib, json, os, signal, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--output_dir", type=Path)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--seconds", type=float, default=0.2)
parser.add_argument("--mistake", action="store_true")
parser.add_argument("--crash_at", type=int)
parser.add_argument("--start_up", type=float, default=0)
parser.add_argument("--config")
args, _ = parser.parse_known_args()
print("at start-up", flush=True)
time.sleep(args.start_up)  # imports: no handler yet
stop = []

def note(number, frame):
    stop.append(number)

for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, note)
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
folder = args.output_dir or Path("output") / Path(args.config).stem
folder.mkdir(parents=True, exist_ok=True)
checkpoint = folder / "checkpoint.json"
state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "hash": ""}

def write(path, content):
    if rank == 0:
        path.with_suffix(".tmp").write_text(content)
        path.with_suffix(".tmp").replace(path)

def tell(status, reason=""):
    record = {"status": status, "reason": reason, "global_step": state["step"], "num_steps": args.steps}
    write(folder / "run_status.json", json.dumps(record))

print(f"rank {rank} of {world} at step {state['step']}", flush=True)
tell("running")
if args.mistake:
    tell("failed", "no such column")
    sys.exit(2)
while state["step"] < args.steps:
    time.sleep(args.seconds)
    state["step"] += 1
    state["hash"] = hashlib.sha256(f"{state}".encode()).hexdigest()
    tell("running")
    if state["step"] == args.crash_at:
        os._exit(1)
    if stop:
        time.sleep(2)  # saving takes a while
        write(checkpoint, json.dumps(state))
        tell("stopped", "signal")
        print(f"rank {rank} stopped at step {state['step']}", flush=True)
        sys.exit(85)
write(folder / "model.safetensors", state["hash"])
tell("finished")
"""


slow = pytest.mark.skipif(os.environ.get("TEST_SLURM") != "1", reason="Slurm's delays: set TEST_SLURM=1 to run it")


class Cluster:
    """Two nodes on this machine, and the jobs of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment = {name: v for name, v in self.environment.items() if not name.startswith("PYTEST")}
        self.processes: list[subprocess.Popen] = []

    def start(self) -> None:
        folder = self.folder
        (folder / "state").mkdir(parents=True)
        folder.chmod(0o755)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0)), two.bind(("127.0.0.1", 0))
            port, first = one.getsockname()[1], two.getsockname()[1]
        host = socket.gethostname().split(".")[0]
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host, user=getpass.getuser(), folder=folder, port=port, first=first, last=first + 1
            )
        )
        names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        self.spawn("munged", "-F", *(f"--{option}={folder / name}" for option, name in names.items()))
        self.wait_for(lambda: (folder / "munge.socket").exists(), 20, "munged")
        self.spawn("slurmctld", "-D")
        for node in ("node1", "node2"):
            self.spawn("slurmd", "-D", "-N", node)
        self.wait_for(lambda: self.slurm("sinfo", "-h", "-o", "%D %t", check=False) == "2 idle", 60, "the nodes")

    def spawn(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "a") as output:
            self.processes.append(
                subprocess.Popen(
                    command, env=self.environment, stdout=output, stderr=output, cwd=self.folder, process_group=0
                )
            )

    def stop(self) -> None:
        self.slurm("scancel", "--user", getpass.getuser(), check=False)
        time.sleep(1)
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    def slurm(self, *command: str, check: bool = True, **variables: str) -> str:
        """What a command says."""
        environment = {**self.environment, **variables}
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    @staticmethod
    def wait_for(ready: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, f"waited {seconds} seconds for {what}"
            time.sleep(0.3)


class Job:
    """A batch file handed in from a folder of its own, and what came of it."""

    def __init__(self, cluster: Cluster, folder: Path, file: str, *words: str, options: str = "", **variables: str):
        self.cluster, self.folder = cluster, folder
        self.output = folder / "output"
        variables = {
            "REPOSITORY": str(REPOSITORY),
            "LOGS": str(folder / "logs"),
            "MASTER_ADDR": "127.0.0.1",  # the nodes' names stand in no DNS here
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        folder.mkdir(exist_ok=True)
        command = [str(FILES / file), *words]
        if file.endswith(".sbatch"):
            command = ["sbatch", "--parsable", *options.split(), *command]
        done = subprocess.run(
            command, env={**cluster.environment, **variables}, cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        self.numbers = done.stdout.split()
        self.number = self.numbers[0]

    def facts(self, number: str | None = None) -> dict[str, str]:
        """What Slurm knows of the job."""
        shown = self.cluster.slurm("scontrol", "show", "job", "-o", number or self.number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def state(self, number: str | None = None) -> str:
        return self.facts(number)["JobState"]

    def wait_for(self, ready: Callable[[], bool], what: str, seconds: float = 120) -> None:
        """Waits while the job goes on; a failure shows everything that is known of it."""
        try:
            self.cluster.wait_for(ready, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.facts()}\n{self.history()}\n{self.logs()}") from None

    def wait(self, *states: str, seconds: float = 120) -> None:
        self.wait_for(lambda: self.state() in states, f"{states}", seconds)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: self.status().get("global_step", -1) >= step, f"step {step}")

    def wait_for_attempt(self, number: int) -> None:
        """Waits until the attempt has begun to count."""
        log = self.folder / "logs" / f"train-{self.number}-attempt{number}.log"
        self.wait_for(lambda: log.is_file() and "at step" in log.read_text(), f"attempt {number}")

    def status(self) -> dict:
        file = self.output / "run_status.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def history(self) -> str:
        return "".join(file.read_text() for file in sorted(self.folder.glob("slurm-*.out")))

    def logs(self) -> dict[str, str]:
        return {file.name: file.read_text() for file in sorted((self.folder / "logs").glob("*.log"))}

    def model(self) -> bytes:
        return (self.output / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)")
    # Sockets have short names only.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/slurm-XXXX"], text=True).strip())
    cluster = Cluster(folder)
    try:
        try:
            cluster.start()
        except (AssertionError, OSError) as error:  # a container may forbid what the daemons need
            said = {file.name: file.read_text()[-500:] for file in folder.glob("*.out")}
            pytest.skip(f"Slurm does not start here: {error} {said}")
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def hand_in(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    """Hands in a job that runs the stand-in, in a folder of its own."""
    script = tmp_path_factory.mktemp("scripts") / "stand_in.py"
    script.write_text(STAND_IN)

    def submit(*words: str, file: str = "train.sbatch", options: str = "--time 20", **variables: str) -> Job:
        folder = tmp_path_factory.mktemp("job")
        words = (str(script), "--output_dir", str(folder / "output"), *words)
        if file == "chain.sh":
            words = ("3", *options.split(), str(FILES / "train.sbatch"), *words)
        return Job(cluster, folder, file, *words, options=options, **variables)

    return submit


@pytest.fixture(scope="module")
def whole_run(hand_in) -> Job:
    """A training that nobody disturbs, to compare with."""
    return hand_in("--steps", "60")


@pytest.fixture(scope="module")
def short_job(hand_in) -> Job:
    """Needs more than its time limit of a minute, which Slurm looks at twice a minute; other tests run meanwhile."""
    return hand_in("--steps", "60", "--seconds", "1.5", options="--time 1 --signal USR1@20")


@pytest.fixture(scope="module")
def unwarned_job(hand_in) -> Job:
    """The same, but no signal comes before the limit."""
    return hand_in("--steps", "60", "--seconds", "2", options="--time 1 --signal CONT@1")


def first_steps(job: Job) -> list[int]:
    """At which step each attempt began."""
    return [int(re.search(r"rank 0 of \d at step (\d+)", log).group(1)) for log in job.logs().values()]


@slow
def test_stops_and_goes_on_to_the_same_model(hand_in, cluster, whole_run, short_job, unwarned_job):
    """Told to stop, then requeued from outside: one training, like one without any of it."""
    job = hand_in("--steps", "60")
    job.wait_for_step(5)
    cluster.slurm("scancel", "--signal=USR1", job.number)
    job.wait_for_attempt(1)
    job.wait_for_step(job.status()["global_step"] + 5)
    cluster.slurm("scontrol", "requeue", job.number)
    job.wait_for_attempt(2)
    job.wait("COMPLETED")
    whole_run.wait("COMPLETED")
    assert job.status()["status"] == "finished"
    assert job.model() == whole_run.model()
    assert list(job.logs()) == [f"train-{job.number}-attempt{number}.log" for number in range(3)]
    steps = first_steps(job)
    assert steps[0] == 0 and steps == sorted(set(steps))
    assert "stopped at step" in job.history() and "finished." in job.history()
    assert list(whole_run.logs()) == [f"train-{whole_run.number}-attempt0.log"]


@slow
def test_two_nodes_with_two_processes(hand_in, cluster, whole_run):
    """Through torchrun; the first signal comes before any handler stands, the second is what preemption sends."""
    job = hand_in("--steps", "60", "--start_up", "4", options="--nodes 2 --time 20", PROCESSES_PER_NODE="2")
    job.wait_for(lambda: any("at start-up" in log for log in job.logs().values()), "start-up")
    cluster.slurm("scancel", "--signal=USR1", job.number)
    job.wait_for_attempt(1)
    cluster.slurm("scancel", "--signal=TERM", job.number)
    job.wait_for_attempt(2)
    job.wait("COMPLETED")
    whole_run.wait("COMPLETED")
    assert job.model() == whole_run.model()
    for log in list(job.logs().values())[:2]:
        assert {int(rank) for rank in re.findall(r"rank (\d) stopped", log)} == {0, 1, 2, 3}
        assert re.findall(r"rank \d of (\d)", log) == ["4"] * 4
    assert first_steps(job)[1] <= 10, "the signal at start-up was lost"


@pytest.mark.parametrize(
    "words, variables, message",
    [
        (["--mistake"], {}, "no such column"),
        (["--steps", "many"], {}, "never got to training"),
        ([], {"VENV": "/nowhere"}, "no virtual environment at VENV=/nowhere"),
        (["--output_dir="], {}, "give --output_dir"),
    ],
    ids=["told", "not_told", "environment", "output_dir"],
)
@slow
def test_a_mistake_is_not_requeued(hand_in, words, variables, message):
    job = hand_in(*words, **variables)
    job.wait("FAILED")
    assert job.facts()["ExitCode"] == "2:0" and job.facts()["Restarts"] == "0"
    assert message in job.history()


@slow
def test_crashes_are_requeued_a_few_times(hand_in):
    job = hand_in("--crash_at", "3", MAX_CRASHES="2")
    job.wait("FAILED")
    assert job.facts()["ExitCode"] == "1:0" and job.facts()["Restarts"] == "1"
    assert "2 crashes and 0 stops without progress" in job.history()


@slow
def test_cancelled_stays_cancelled_but_has_saved(hand_in, cluster):
    job = hand_in("--steps", "1000")
    job.wait_for_step(3)
    cluster.slurm("scancel", job.number)
    job.wait("CANCELLED")
    job.wait_for(lambda: job.status()["status"] == "stopped", "the checkpoint")
    job.wait_for(lambda: "ended by Slurm" in job.history(), "the batch shell")
    time.sleep(3)
    assert job.state() == "CANCELLED"


@slow
def test_chain(hand_in, cluster, whole_run):
    """The first job is stopped, the second finishes, the third has nothing to do."""
    job = hand_in("--steps", "60", file="chain.sh")
    assert len(job.numbers) == 3
    job.wait_for_step(5)
    cluster.slurm("scancel", "--signal=USR1", job.number)
    job.wait("FAILED")
    assert job.facts()["ExitCode"] == "85:0" and job.facts()["Restarts"] == "0"
    job.wait_for(lambda: job.state(job.numbers[2]) == "COMPLETED", "the third job")
    assert job.state(job.numbers[1]) == "COMPLETED"
    assert len(job.logs()) == 2 and "has finished this training" in job.history()
    whole_run.wait("COMPLETED")
    assert job.model() == whole_run.model()


@slow
def test_array_of_encoders_requeues_one_task(cluster, tmp_path):
    """A stopped task must not take the others along, which the number of the array would do."""
    for name in ("launch", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "train_segmentation.py").write_text(STAND_IN)
    job = Job(cluster, tmp_path, "encoders.sbatch", "--steps", "60", REPOSITORY=str(tmp_path))
    names = ["segformer_b3", "convnext_tiny", "maxvit_tiny"]
    job.outputs = [tmp_path / "output" / f"artefact_{name}" for name in names]
    counting = [output / "run_status.json" for output in job.outputs]
    job.wait_for(lambda: all(file.is_file() for file in counting), "all tasks")
    cluster.slurm("scancel", "--signal=USR1", f"{job.number}_2")
    job.wait_for(lambda: all((output / "model.safetensors").is_file() for output in job.outputs), "all models")
    assert len({(output / "model.safetensors").read_bytes() for output in job.outputs}) == 1
    assert sorted(job.logs()) == [
        f"encoders-{job.number}_{name}.log" for name in ("0-attempt0", "1-attempt0", "2-attempt0", "2-attempt1")
    ]


@slow
def test_time_limit(short_job, whole_run):
    short_job.wait("COMPLETED", seconds=400)
    assert len(short_job.logs()) >= 2 and "stopped at step" in short_job.history()
    assert short_job.model() == whole_run.model()


@slow
def test_time_limit_without_warning(unwarned_job, whole_run):
    """Slurm says COMPLETED or TIMEOUT, depending on whether the last attempt was just in time."""
    unwarned_job.wait_for(lambda: "finished." in unwarned_job.history(), "the end", 400)
    assert "ended by Slurm" in unwarned_job.history() and "requeued." in unwarned_job.history()
    assert unwarned_job.model() == whole_run.model()


@pytest.mark.slow
def test_real_training_is_stopped_requeued_and_evaluated(cluster, fruit, tmp_path):
    """train_taxonomy.py itself, with an undisturbed run beside it; then evaluate.sbatch on what it wrote.

    Requeueing sends SIGTERM to all processes of the job, those that load data included.
    """
    words = ["--dataset_name", str(fruit), "--level_columns", "order", "family", "species", "--image_size", "32"]
    words += ["--model_name_or_path", "timm/test_resnet", "--no_pretrained", "--num_train_epochs", "30"]
    words += ["--global_batch_size", "8", "--logging_steps", "1", "--dataloader_num_workers", "1"]
    jobs = []
    for name in ("job", "whole"):
        output = str(tmp_path / name / "output")
        jobs.append(Job(cluster, tmp_path / name, "train.sbatch", "train_taxonomy.py", "--output_dir", output, *words))
    job, whole = jobs
    for attempt, command in enumerate(["scancel --signal=USR1", "scontrol requeue"]):
        log = job.folder / "logs" / f"train-{job.number}-attempt{attempt}.log"
        job.wait_for(lambda log=log: log.is_file() and log.read_text().count(" loss ") > 10, "a few steps", 240)
        cluster.slurm(*command.split(), job.number)
    for each in jobs:
        each.wait("COMPLETED", seconds=300)
    assert job.facts()["Restarts"] == "2" and whole.facts()["Restarts"] == "0"
    assert job.status()["status"] == whole.status()["status"] == "finished"
    assert job.model() == whole.model()
    for log in list(job.logs().values())[:2]:
        assert "will stop after this step, with a checkpoint" in log and "DataLoader worker" not in log
    assert all("Resuming from step" in log for log in list(job.logs().values())[1:])

    again = Job(cluster, tmp_path / "job", "evaluate.sbatch", "train_taxonomy.py", str(job.output))
    again.wait("COMPLETED")
    results, first = (
        json.loads((tmp_path / "job" / folder / "all_results.json").read_text())["eval"]
        for folder in ("output_evaluation", "output")
    )
    assert results["path"] == first["path"]
    images = [str(fruit), "--split", "validation", "--output_dir", str(tmp_path / "predictions")]
    predicted = Job(cluster, tmp_path / "job", "predict.sbatch", str(job.output), *images)
    predicted.wait("COMPLETED")
    summary = json.loads((tmp_path / "predictions" / "summary.json").read_text())
    assert summary["num_images"] == first["num_samples"]
