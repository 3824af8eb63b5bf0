from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tiny import SAMPLE, Affbench, Ended, tiny_config

from affbench.base import store
from affbench.base.config import override, read_pipeline
from affbench.base.interrupt import Stop
from affbench.base.workspace import Workspace
from affbench.cli.train import changed as with_changes
from affbench.data import sets
from affbench.run.folder import RESUME, list_runs
from affbench.run.plan import plan_run
from affbench.run.train import train

TRAIN = (
    *("train", "--train-set", SAMPLE, "--limit", "64", "--epochs", "1", "--batch-size", "32", "--device", "cpu"),
    *("-o", "filters=4", "-o", "primary_types=2", "-o", "decoder=8,8", "--precision", "float32"),
)
AFFINE = "affnist-synthetic-sample"
TEXTBOOK = Path(__file__).parents[2] / "benchmarks" / "textbook.py"


def one_sentence(ended: Ended) -> str:
    """The message of a failed command, which must be all that is printed."""
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    return " ".join(ended.stderr.split())


def everything_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def test_help_lists_every_command_quickly_and_without_torch() -> None:
    code = "import sys\nsys.argv = ['affbench', '--help']\nfrom affbench.cli.app import main\n"
    code += "try:\n  main()\nfinally:\n  print(*{'torch', 'pydantic', 'h5py', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("fetch", "train", "eval", "sweep", "run", "report", "status", "bench", "show", "export", "verify"):
        assert f" {command} " in done.stdout
    assert done.stdout.splitlines()[-1] == ""


def test_status_loads_neither_torch_nor_scipy(tmp_path: Path) -> None:
    code = "import sys\nsys.argv = ['affbench', 'status']\nfrom affbench.cli.app import main\n"
    code += "try:\n  main()\nfinally:\n  sys.exit(bool({'torch', 'scipy'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["train", "--model", "capsnat"], 2, "unknown model 'capsnat': did you mean 'capsnet'?"),
        (["train", "--model", "no.such:thing"], 2, "model 'no.such:thing' cannot be imported"),
        (["train", "--routings", "0"], 2, "--routings"),
        (["train", "--routings", "-1"], 2, "--routings"),
        (["train", "--routings", "abc"], 2, "--routings"),
        (["train", "--limit", "0"], 2, "--limit"),
        (["train", "--model", "cnn", "--routings", "3"], 2, "--routings does not go with model 'cnn'"),
        (["train", "--option", "filters"], 2, "--option filters is not of the form KEY=VALUE"),
        (["train", "--option", "filter=3"], 2, "has no option 'filter': did you mean 'filters'?"),
        (["train", "--option", "filters=many"], 2, "filters must be a whole number"),
        (["train", "--schedule", "papr"], 2, "did you mean 'paper'?"),
        (["train", "--precision", "float16"], 2, "precision = 'float16' in the command line is unknown: did you mean"),
        (["train", "--device", "cdua"], 2, "did you mean 'cuda'?"),
        (["train", "--train-set", "mnist-translate"], 2, "did you mean 'mnist-translated'?"),
        (["train", "--config", "nowhere.toml"], 2, "there is no file nowhere.toml"),
        (["train", "--learning-rate", "7"], 2, "learning_rate = 7"),
        (["train", "--resume"], 2, "there is no unfinished run"),
        (["train", "--train-set", "mnist-translated"], 1, "'affbench fetch mnist'"),
        (["train", "--train-set", "affnist"], 1, "'affbench fetch affnist'"),
        (["eval"], 1, "there is no finished run"),
        (["eval", "--set", "afnist"], 2, "unknown set 'afnist': did you mean 'affnist'?"),
        (["eval", "--set", SAMPLE, "--run", "nothing"], 2, "there is no finished run 'nothing'"),
        (["eval", "--limit", "0"], 2, "--limit"),
        (["sweep", "--routings", "1,x"], 2, "--routings 1,x must list different whole numbers of at least 1"),
        (["sweep", "--routings", "0,1"], 2, "--routings 0,1 must list different whole numbers of at least 1"),
        (["sweep", "--seeds", "0"], 2, "--seeds 0"),
        (["sweep", "--engine", "lcal"], 2, "--engine lcal is unknown: did you mean 'local'?"),
        (["show", "--set", SAMPLE, "--split", "tst"], 2, "did you mean 'test'?"),
        (["show", "--set", AFFINE, "--only", "rotatoin"], 2, "did you mean 'rotation'?"),
        (["run", "quickstrat"], 2, "did you mean 'quickstart'?"),
        (["trian"], 2, "Did you mean 'train'?"),
        (["sweep", "--model", "cnn"], 2, "model 'cnn' has no option 'routings'"),
        (["run", "pipelines/nothing.toml"], 2, "there is no file pipelines/nothing.toml"),
        (["fetch", "minst"], 2, "did you mean 'mnist'?"),
        (["fetch", "mnist", "--mirror", "/no/such/folder"], 2, "/no/such/folder"),
        (["fetch", "mnist", "--offline"], 1, "--offline"),
        (["fetch", "affnist", "--offline"], 1, "--set affnist-synthetic"),
        (["report"], 1, "there is no finished run"),
        (["show", "--set", "mnist-translated"], 1, "'affbench fetch mnist'"),
        (["export", "--set", SAMPLE, "out.mat"], 1, "transformation"),
        (["verify", SAMPLE], 1, "no transformation table"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_bad_input_is_one_clear_sentence_and_leaves_nothing(
    affbench: Affbench, workspace: Workspace, tmp_path: Path, arguments: list[str], status: int, complaint: str
) -> None:
    ended = affbench(*arguments, data_dir=tmp_path / "data")
    assert complaint in one_sentence(ended).replace("│ ", "").replace(" │", "")
    assert ended.status == status
    assert not list_runs(workspace.results)


def test_cuda_that_is_not_there_is_said(
    affbench: Affbench, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    train(tiny_config(epochs=1), workspace)
    for command in (TRAIN[:-2], ("figure", "positions", "--set", SAMPLE)):
        ended = affbench(*command, "--device", "cuda")
        assert ended.status == 1
        assert "--device cuda is not here: torch finds 0 cuda devices; use --device auto." in one_sentence(ended)


def test_errors_carry_a_traceback_only_with_debug(affbench: Affbench) -> None:
    assert "Traceback" in affbench("eval", "--set", "afnist", "--debug").stderr


def test_unexpected_error_is_called_a_bug(affbench: Affbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("affbench.experiment.housekeeping.read_status", broken)
    ended = affbench("status")
    assert ended.status == 1
    assert "unexpected ZeroDivisionError: division by zero. This is a bug" in one_sentence(ended)


def test_train_evaluate_and_report(affbench: Affbench, workspace: Workspace) -> None:
    trained = affbench(*TRAIN, "--json")
    assert trained.status == 0
    assert trained.document["epochs"] == 1
    assert not trained.document["cached"]
    assert "epoch 1/1: loss" in trained.stderr
    assert affbench(*TRAIN, "--json").document["cached"]

    evaluation = ("eval", "--set", AFFINE, "--copies", "1", "--limit", "500", "--device", "cpu")
    record = affbench(*evaluation, "--json").document
    assert record["run"] == trained.document["run"]
    assert (record["set"], record["n"]) == (AFFINE, 500)
    assert record["accuracy_ci95"][0] <= record["accuracy"] <= record["accuracy_ci95"][1]
    assert json.loads((workspace.results / "runs" / record["run"] / f"eval-{AFFINE}.json").read_text()) == record
    tested = affbench(*evaluation)
    assert "95% Wilson interval" in " ".join(tested.stdout.split())
    assert "95% Wilson interval" not in tested.stderr

    state = affbench("status", "--json").document
    assert [run["name"] for run in state["runs"]] == [record["run"]]
    assert state["runs"][0]["accuracy"] == {AFFINE: record["accuracy"]}

    written = affbench("report", "--json").document
    assert Path(written["html"]).is_file()


def test_sweep_prints_the_documented_document(affbench: Affbench) -> None:
    options = [*TRAIN[1:], "--sets", SAMPLE, "--test-limit", "100"]
    document = affbench("sweep", "--routings", "1,3", "--seeds", "1", *options, "--json").document
    assert [(cell["model"], cell["routings"], cell["seed"]) for cell in document["cells"]] == [
        ("capsnet", 1, 0),
        ("capsnet", 3, 0),
    ]
    for cell in document["cells"]:
        assert 0 <= cell["accuracy"][SAMPLE] <= 1
        assert cell["seconds_per_epoch"] > 0
    assert len(document["summary"]) == 2


def test_quiet_prints_nothing_and_json_only_the_document(affbench: Affbench) -> None:
    ended = affbench(*TRAIN, "--quiet")
    assert (ended.stdout, ended.stderr) == ("", "")


def test_saved_configuration_gives_the_same_run(affbench: Affbench, workspace: Workspace) -> None:
    name = affbench(*TRAIN, "--json").document["run"]
    again = affbench("train", "--config", str(workspace.results / "runs" / name / "config.toml"), "--json")
    assert again.document["run"] == name
    assert again.document["cached"]
    other = affbench(
        "train", "--config", str(workspace.results / "runs" / name / "config.toml"), "--seed", "1", "--json"
    )
    assert other.document["run"] != name


def test_varied_set_is_evaluated_under_its_own_name(affbench: Affbench, workspace: Workspace) -> None:
    train(tiny_config(epochs=1), workspace)
    options = ("--copies", "1", "--limit", "100", "--device", "cpu", "--json")
    record = affbench("eval", "--set", AFFINE, "--rotation", "45", "--translation", "0", *options).document
    assert record["set"] == f"{AFFINE}@rotation=45,translation=0"
    wrong = affbench("eval", "--set", SAMPLE, "--rotation", "45", *options)
    assert wrong.status == 2
    assert "cannot be varied" in wrong.stderr


def test_show_export_and_verify(affbench: Affbench, workspace: Workspace, tmp_path: Path) -> None:
    shown = affbench("show", "--set", AFFINE, "--output", str(tmp_path / "pictures"), "--json").document
    assert len(shown["pictures"]) == 2
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in shown["pictures"])
    exported = affbench("export", "--set", AFFINE, "--copies", "1", "--limit", "300", str(tmp_path / "test.mat"))
    assert exported.status == 0
    home = tmp_path / "official"
    fetched = affbench("fetch", "affnist", "--offline", "--mirror", str(tmp_path), "--json", data_dir=home)
    assert fetched.status == 0
    assert fetched.document["sets"][0]["files"][0]["sha256"] == store.file_hash(tmp_path / "test.mat")
    run = train(tiny_config(epochs=1), workspace)
    record = affbench("eval", "--set", "affnist", "--json", "--device", "cpu", data_dir=home)
    assert (record.document["run"], record.document["n"]) == (run.name, 300)
    agreed = affbench("verify", AFFINE, "--sample", "200")
    assert agreed.status == 0
    assert "documented convention explains" in agreed.stdout


def corrupted(kind: str, folder: Path) -> Path:
    """A mirror of MNIST in which the training images are not right."""
    folder.mkdir()
    for path in (Path(str(files("affbench.data"))) / "sample").glob("*.gz"):
        shutil.copy(path, folder)
    victim = folder / "train-images-idx3-ubyte.gz"
    content = victim.read_bytes()
    if kind == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    elif kind == "lying header":
        victim.write_bytes(gzip.compress(bytes([0, 0, 8, 3, 0x7F, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 28])))
    elif kind == "bit flip":
        victim.write_bytes(content[:999] + bytes([content[999] ^ 1]) + content[1000:])
    return folder


@pytest.mark.parametrize("kind", ["truncated", "lying header", "bit flip", "other digits"])
def test_wrong_files_are_not_kept(affbench: Affbench, tmp_path: Path, kind: str) -> None:
    mirror = corrupted(kind, tmp_path / "mirror")
    home = tmp_path / "data"
    ended = affbench("fetch", "mnist", "--offline", "--mirror", str(mirror), data_dir=home)
    assert ended.status == 1
    assert "idx" in one_sentence(ended)
    assert not [path for path in everything_below(home) if "idx" in path.name]


def test_data_folder_that_cannot_be_written_is_said(affbench: Affbench, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    ended = affbench(*TRAIN, data_dir=tmp_path / "data")
    assert ended.status == 1
    assert "cannot write" in one_sentence(ended)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EROFS, "it is read-only; choose another folder"),
        (errno.EACCES, "permission denied; choose another folder"),
        (errno.ENOSPC, "the disk is full; free some space"),
    ],
)
def test_folder_that_refuses_writing_is_said(
    affbench: Affbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("affbench.base.store.tempfile.mkstemp", refuse)
    ended = affbench(*TRAIN, data_dir=tmp_path / "data")
    assert ended.status == 1
    assert hint in one_sentence(ended)
    assert not everything_below(tmp_path / "data")


def test_home_is_written_out(affbench: Affbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    target = ("export", "--set", AFFINE, "--copies", "1", "--limit", "9", "~/out.mat")
    assert affbench(*target, data_dir=Path("~/data")).status == 0
    assert not (tmp_path / "~").exists()
    assert (tmp_path / "data" / "sets").is_dir()
    assert (tmp_path / "out.mat").is_file()
    assert "is in the home folder of nobody here" in one_sentence(
        affbench("status", data_dir=Path("~nobody-here/data"))
    )


def test_folder_that_is_a_link_to_nowhere_is_named(affbench: Affbench, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(tmp_path / "unmounted")
    ended = affbench(*TRAIN, data_dir=tmp_path / "data")
    assert ended.status == 1
    assert f"data is a link to {tmp_path}/unmounted, which is not there; mount or make that" in one_sentence(ended)


@pytest.mark.parametrize("command", [TRAIN, ("status",)])
def test_name_that_is_too_long_is_told(affbench: Affbench, command: tuple[str, ...]) -> None:
    ended = affbench(*command, data_dir=Path("x" * 300))
    assert ended.status == 1
    assert "longer than its file system allows; shorten it" in one_sentence(ended)


def test_full_temporary_folder_is_named(affbench: Affbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mirror").mkdir()
    target = tmp_path / "mirror" / "test.mat.zip"
    assert affbench("export", "--set", AFFINE, "--copies", "1", str(target)).status == 0

    def refuse(*args: object, **options: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("affbench.base.store.tempfile.mkdtemp", refuse)
    ended = affbench("fetch", "affnist", "--quiet", "--mirror", str(target.parent), data_dir=tmp_path / "data")
    assert ended.status == 1
    assert (
        "free some space, or name another folder for temporary files in the environment variable TMPDIR" in ended.stderr
    )


def test_hangup_is_a_question_like_the_other_signals_unless_it_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests themselves were started with
    try:
        with pytest.raises(KeyboardInterrupt), Stop():
            signal.raise_signal(signal.SIGHUP)  # asked once, it raises when the block ends
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_the_command_line_changes_stands_in_the_note() -> None:
    quickstart = read_pipeline(Path(__file__).parents[2] / "pipelines" / "quickstart.toml")
    assert "5,000" not in quickstart.note
    assert with_changes(quickstart, None, None, None, None).note == quickstart.note
    changed = with_changes(quickstart, 2, 1500, None, None)
    assert changed.note == f"{quickstart.note} Changed on the command line: --epochs 2, --limit 1500."


def test_unfinished_run_that_is_no_longer_what_it_was_is_not_gone_on_with(
    affbench: Affbench, workspace: Workspace
) -> None:
    config = tiny_config()
    plan = plan_run(config, workspace)
    store.write_text(plan.folder / "config.toml", override(plan.config, training={"seed": 7}).to_toml())
    ended = affbench("train", "--resume", "--device", "cpu")
    assert ended.status == 1
    assert f"{plan.folder.name} cannot be gone on with: its config.toml, the code of its model" in one_sentence(ended)


def test_interrupt_in_training_keeps_what_is_done(workspace: Workspace, tmp_path: Path) -> None:
    sets.load_dataset("mnist-sample", "train", workspace.data)
    options = ["--data-dir", str(workspace.data), "--results-dir", str(workspace.results)]
    command = [sys.executable, "-m", "affbench", *TRAIN, *options, "--epochs", "500", "--limit", "640"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2/500" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(60) == 130
    process.stderr.close()
    assert "what was done is saved" in rest
    (unfinished,) = list_runs(workspace.results)
    assert (unfinished.path / RESUME).is_file()
    done = len(unfinished.history)
    assert done >= 2
    process = subprocess.Popen(
        [sys.executable, "-m", "affbench", "train", "--resume", "--device", "cpu", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "epoch " in line and "/500:" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 130
    assert any(f"going on after epoch {done}" in line for line in seen)


def test_same_command_twice_at_once_trains_once(workspace: Workspace) -> None:
    options = ["--data-dir", str(workspace.data), "--results-dir", str(workspace.results), "--json"]
    command = [sys.executable, "-m", "affbench", *TRAIN, *options]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    outputs = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0]["run"] == outputs[1]["run"]
    assert outputs[0]["validation_accuracy"] == outputs[1]["validation_accuracy"]
    assert len(list_runs(workspace.results)) == 1


def test_bench_prints_the_ratios(affbench: Affbench) -> None:
    options = ("-o", "filters=4", "-o", "primary_types=2", "--textbook", str(TEXTBOOK))
    ended = affbench("bench", "--batch-size", "4", "--repeats", "2", "--device", "cpu", *options, "--json")
    assert ended.status == 0
    document = ended.document
    for name in ("step_over_floor", "textbook_over_step", "routing_10_over_1"):
        assert document[name]["median"] > 0
    assert document["peak_memory_bytes"] > 0


def test_a_speedrun_prints_one_line_for_the_table_of_records(affbench: Affbench, workspace: Workspace) -> None:
    tiny = ("speedrun", *TRAIN[1:], "--schedule", "constant")
    line = affbench(*tiny, "--epochs", "3", "--target", "0.01").stdout
    run, *_ = list_runs(workspace.results)
    assert len(line.splitlines()) == 1
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    assert len(cells) == 9
    assert cells[0].startswith(run.name)
    assert cells[3:5] == ["1 of 3", "64"]
    assert cells[6] == f"{run.history[-1].validation_accuracy:.2%}"
    document = json.loads(affbench(*tiny, "--epochs", "3", "--target", "0.01", "--json").stdout)
    assert (document["run"], document["images"], document["epochs"]) == (run.name, 64, 1.0)
    small = ("-o", "filters=4", "-o", "primary_types=2", "-o", "decoder=8,8")
    bench = affbench("bench", *small, "--batch-size", "2", "--repeats", "1", "--json").document
    (what,) = bench["time_to_accuracy"]
    assert what.startswith(f"time to 1.00% validation accuracy, {run.name}")
    assert bench["time_to_accuracy"][what] == run.history[-1].seconds
    ended = affbench(*tiny, "--target", "1")
    assert ended.status == 1
    assert "not 100.00%: no record" in one_sentence(ended)
