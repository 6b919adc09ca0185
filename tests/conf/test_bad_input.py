"""Bad input ends a command before it makes anything; one message names key and value."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.cli.listing import CONF

ROOT = CONF.parent

CASES = {
    "unknown option": (["algo=ewcc"], ["algo=ewcc", "must be one of agem,", "did you mean ewc?"]),
    "unknown group": (["algoo=ewc"], ["algoo=ewc", "no such key", "did you mean algo?"]),
    "misspelt key": (
        ["trainig.lr_decay=.5"],
        ["trainig.lr_decay=.5", "did you mean training.lr_decay?"],
    ),
    "misspelt key below": (
        ["training.lr_deccay=.5"],
        ["training.lr_deccay=.5", "epochs_per_task", "did you mean training.lr_decay?"],
    ),
    "misspelt hyper-parameter": (
        ["algo=ewc", "algo.ewc_lamda=3"],
        ["algo.ewc_lamda=3", "did you mean algo.ewc_lambda?"],
    ),
    "added argument": (["+algo.x=1"], ["algo.x=1", "no such key", "EWC"]),
    "added near miss": (["+optimizer.lrr=1"], ["optimizer.lrr=1", "did you mean lr?"]),
    "runner's argument": (["+algo.run_dir=x"], ["algo.run_dir=x", "no such key"]),
    "added top-level key": (["+foo=1"], ["foo=1", "must be one of algo,"]),
    "added group": (["+benchmarkk=x"], ["benchmarkk=x", "did you mean benchmark?"]),
    "wrong type of an argument": (
        ["benchmark.batch_size=ten"],
        ["benchmark.batch_size='ten'", "must be an integer >= 1"],
    ),
    "wrong type in the schema": (
        ["training.lr_decay=abc"],
        ["training.lr_decay=abc", "must be a number"],
    ),
    "negative lambda": (["algo.ewc_lambda=-1"], ["algo.ewc_lambda=-1", "must be a number >= 0"]),
    "out of range": (["training.lr_decay=2"], ["training.lr_decay=2", "(0, 1]"]),
    "zero rate": (["optimizer.lr=0"], ["optimizer.lr=0", "must be a number > 0"]),
    "dropout": (["backbone.dropout=1"], ["backbone.dropout=1", "[0, 1)"]),
    "two wrong keys": (["optimizer.nesterov=true"], ["optimizer.nesterov=True", "momentum"]),
    "epochs per task": (
        ["training.epochs_per_task=[1,2]"],
        ["training.epochs_per_task=[1, 2]", "benchmark.num_tasks=5"],
    ),
    "no data": (
        ["benchmark=rotated_mnist", "data_dir=/nonexistent"],
        ["data_dir=/nonexistent", "MNIST"],
    ),
    "two rows in one": (
        ["reproductions=[hsu2018/class_naive,hsu2018/class_ewc]"],
        ["reproductions=[hsu2018/class_naive,hsu2018/class_ewc]", "must be one file, not a list"],
    ),
    "a list of one row": (["reproductions=[hsu2018/class_ewc]"], ["must be one file, not a list"]),
    "rows in a sweep of lists": (
        ["-m", "reproductions=[hsu2018/class_ewc],[hsu2018/class_si]"],
        ["must be one file, not a list"],
    ),
    "backend": (["backend=tork"], ["backend=tork", "torch, jax", "did you mean torch?"]),
    "device": (["device=gpu"], ["device='gpu'", "auto, cpu, cuda"]),
    "device by another name": (["device=gpu"], ["did you mean cuda?"]),
    "case": (["algo=EWC"], ["algo=EWC", "did you mean ewc?"]),
    "key of another option": (
        ["algo=er", "algo.ewc_lambda=3"],
        ["algo.ewc_lambda=3: no such key; algo=er has memory_size, memory_batch_size"],
    ),
    "option without keys": (["algo=naive", "algo.foo=3"], ["algo=naive has no keys"]),
    "own class's key": (
        ["algo._target_=seqrun.algorithms.er.torch.ER", "algo.memry_size=3"],
        ["with + before the key also", "memory_size", "did you mean algo.memory_size?"],
    ),
    "key that its file leaves out": (
        ["backbone=mlp", "algo._target_=seqrun.algorithms.er.torch.ER", "algo.memory_size=3"],
        ["algo.memory_size=3: its file has no such key; write +algo.memory_size"],
    ),
    "key without its group": (["lr=0.1"], ["lr=0.1: no such key", "did you mean optimizer.lr?"]),
    "key of the wrong group": (["training.lr=0.1"], ["did you mean optimizer.lr?"]),
    "beginning of a key": (["training.epochs=3"], ["did you mean training.epochs_per_task?"]),
    "framework's name for a key": (["optimizer.learning_rate=1"], ["did you mean optimizer.lr?"]),
    "logger that is not chosen": (
        ["logger.wandb.mode=offline"],
        ["logger.wandb.mode=offline: wandb is not chosen; logger=wandb adds it to the defaults"],
    ),
    "callback that is not chosen": (
        ["callbacks.early_stopping.patience=2"],
        ["early_stopping is not chosen; callbacks=early_stopping adds it to the defaults"],
    ),
    "None": (["training.grad_clip=None"], ["training.grad_clip=None", "None is null here"]),
    "None of a part": (["algo.clip=None"], ["algo.clip='None'", "None is null here"]),
    "None as a choice": (["logger=none"], ["logger=none", "None is null here"]),
    "tilde": (["notes=~x"], ["""needs quotes for Hydra""", """'notes="~x"'"""]),
    "not ASCII": (["notes=größe"], ["""'notes="größe"'"""]),
    "word for a list": (["tags=a"], ["tags=a: must be a list, such as tags=[a]"]),
    "resume": (["resume=always"], ["resume='always'", "auto, never"]),
    "threads": (["num_threads=0"], ["num_threads=0", "must be an integer >= 1"]),
    "function as a target": (
        ["allow_targets=[torch]", "algo._target_=torch.os.getcwd"],
        ["algo._target_=torch.os.getcwd", "there is no module"],
    ),
    "module's function": (
        ["algo._target_=seqrun.plan.batch_order"],
        ["algo._target_=seqrun.plan.batch_order", "no class batch_order"],
    ),
    "imported class": (
        ["+callbacks.x._target_=seqrun.records.results.Path"],
        ["callbacks.x._target_=seqrun.records.results.Path", "but this one is from pathlib"],
    ),
    "foreign package": (
        ["+callbacks.x._target_=subprocess.Popen"],
        ["callbacks.x._target_=subprocess.Popen", "seqrun", "allow_targets"],
    ),
    "nested target": (
        ["+callbacks.metrics.x={_target_: os.system, command: 'touch made'}"],
        ["callbacks.metrics.x"],
    ),
    "look-alike package": (
        ["+callbacks.x._target_=seqrunx.Popen"],
        ["callbacks.x._target_=seqrunx.Popen", "allow_targets"],
    ),
    "wrong slot": (
        ["algo._target_=seqrun.callbacks.MetricCallback"],
        ["algo._target_=seqrun.callbacks.MetricCallback", "must be a BaseAlgorithm"],
    ),
    "misspelt class": (
        ["+callbacks.x._target_=seqrun.callbacks.MetricCalback"],
        ["no class MetricCalback", "did you mean MetricCallback?"],
    ),
    "mixed backends": (
        ["backend=torch", "optimizer._target_=seqrun.optimizers.jax.SGD"],
        ["optimizer=sgd", "jax", "torch"],
    ),
    "syntax": (["algo=["], ["algo=[", "not an override"]),
    "no equals sign": (["ewc"], ["ewc", "not an override"]),
    "flag behind": (["seed=1", "-m", "seed=0,1"], ["seed=0,1", "flag"]),
    "launcher without -m": (["hydra/launcher=submitit_local"], ["has no effect without -m"]),
    "sweeper without -m": (["hydra/sweeper=optuna"], ["has no effect without -m"]),
    "choices without -m": (["seed=0,1"], ["seed=0,1", "-m", "seed=[0,1]"]),
    "unknown launcher": (
        ["-m", "hydra/launcher=submitit_locall", "seed=0,1"],
        ["hydra/launcher=submitit_locall", "did you mean submitit_local?"],
    ),
    "launcher that is not installed": (
        ["-m", "hydra/launcher=rq", "seed=0,1"],
        ["hydra/launcher=rq: needs a plugin of Hydra's: pip install hydra-rq-launcher"],
    ),
    "node as text": (["training=foo"], ["training=foo", "training.lr_decay"]),
    "node as number": (["streams=3"], ["streams=3", "streams.init"]),
    "no node": (["training=null"], ["training=null", "must not be null"]),
    "no data directory": (["data_dir=null"], ["data_dir=null", "must not be null"]),
    "option as number": (["algo=3"], ["algo=3", "must be one of agem"]),
    "shown and run": (
        ["--cfg", "job", "-m"],
        ["--multirun: must not be used with --cfg", "--dry-run"],
    ),
    "asked to show": (["algo=3", "--cfg", "job"], ["algo=3", "must be one of agem"]),
    "list as number": (["logger=3"], ["logger=3", "or a list of them"]),
    "expectation": (["expected=3"], ["expected=3", "must be a node"]),
    "secret in plain text": (
        ["allow_targets=[x]", "+logger.m._target_=x.L", "+logger.m.api_key=S3CRET"],
        ["logger.m.api_key: a secret would be recorded", "SEQRUN_<NAME>"],
    ),
    "secret with a default in plain text": (
        ["allow_targets=[x]", "+logger.m._target_=x.L", "+logger.m.token=${oc.env:SEQRUN_K,PLAIN}"],
        ["logger.m.token: a secret would be recorded"],
    ),
    "secret as a number": (
        ["allow_targets=[x]", "+logger.m._target_=x.L", "+logger.m.api_key=123"],
        ["logger.m.api_key: a secret would be recorded"],
    ),
    "secret in a list": (
        ["allow_targets=[x]", "+logger.m._target_=x.L", "+logger.m.password=[PLAIN]"],
        ["logger.m.password[0]: a secret would be recorded"],
    ),
    "secret below a list": (
        ["allow_targets=[x]", "+logger.m._target_=x.L", "+logger.m.o=[{password:{a:PLAIN}}]"],
        ["logger.m.o[0].password.a: a secret would be recorded"],
    ),
    "secret in a job's environment": (
        ["-m", "seed=0,1", "+hydra.job.env_set.WANDB_API_KEY=S3CRET"],
        ["hydra.job.env_set.WANDB_API_KEY: a secret would be recorded"],
    ),
    "duplicate seeds": (["seed=[0,1,0]"], ["seed=[0, 1, 0]", "different"]),
    "no seeds": (["seed=[]"], ["seed=[]", "at least one"]),
    "negative seed": (["seed=-1"], ["seed=-1", "must be an integer >= 0"]),
    "fractional seed": (["seed=[0.5]"], ["seed=0.5", "must be an integer >= 0"]),
    "negative stream": (["streams.data=-1"], ["streams.data=-1", "must be an integer >= 0"]),
    "unknown key of training": (
        ["+training.foo=1"],
        ["training.foo=1", "must be one of epochs_per_task"],
    ),
    "unknown stream": (["+streams.foo=1"], ["streams.foo=1", "must be one of init"]),
    "no training": (["~training"], ["training: must be given"]),
    "no seed": (["~seed"], ["seed: must be given"]),
    "unknown reference": (["backbone.width=${nope}"], ["backbone.width", "'nope' not found"]),
    "unknown key of Hydra's": (["hydra.foo=1"], ["hydra.foo=1", "no such key of Hydra's"]),
    "launcher's key without -m": (["hydra.launcher.n_jobs=2"], ["n_jobs=2", "without -m"]),
    "no run directory": (["hydra.run.dir="], ["hydra.run.dir=", "must be a directory"]),
    "run directory in a file": (
        [f"hydra.run.dir={__file__}/x"],
        ["hydra.run.dir=", "can be written to", "Not a directory"],
    ),
    "logger's directory in a file": (
        [f"logger.local.directory={__file__}"],
        ["logger.local.directory=", "can be written to"],
    ),
    "no configuration directory": (
        ["--config-dir", "nowhere"],
        ["--config-dir=nowhere", "must be a directory"],
    ),
    "no algorithm": (["algo=null"], ["algo=null", "must be one of agem"]),
    "deleted group": (["~benchmark"], ["benchmark", "must be one of"]),
    "unknown sweep": (["-m", "sweeps=sedes"], ["sweeps=sedes", "did you mean seeds?"]),
    "one bad job of a grid": (
        ["-m", "algo=naive", "optimizer.lr=0.1,0.01,-1"],
        ["optimizer.lr=-1", "must be a number > 0"],
    ),
    "a job twice": (["-m", "algo=naive", "seed=0,1,0"], ["seed=0", "the same experiment"]),
    "interval of a grid": (
        ["-m", "optimizer.lr=interval(0.1,1)"],
        ["interval", "hydra/sweeper=search"],
    ),
    "bad end of a search": (
        ["-m", "hydra/sweeper=optuna", "optimizer.momentum=interval(0,1)"],
        ["optimizer.momentum=1", "[0, 1)"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case, elsewhere, capfd):
    argv, expected = CASES[case]
    assert preflight.main(argv, CONF) == preflight.BAD_INPUT
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for text in expected:
        assert text in err
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_framework_that_is_not_installed(jobs_of, monkeypatch, backend):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == backend else found(name, *a)
    )
    with pytest.raises(ConfigError, match=f"backend={backend}: .*pip install .*{backend}"):
        jobs_of(f"backend={backend}")


SWEEP = "hydra:\n  mode: MULTIRUN\n  sweeper:\n"
SEARCH = f"defaults:\n  - override /hydra/sweeper: search\n{SWEEP}"
OPTUNA = f"defaults:\n  - override /hydra/sweeper: optuna\n{SWEEP}"


@pytest.mark.ci
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hydra:\n  callbacks:\n    x: {_target_: os.system}\n", "sets hydra.callbacks"),
        ("hydra:\n  run: {dir: /somewhere}\n", "sets hydra.run"),
        ("hydra:\n  job: {env_set: {PATH: x}}\n", "sets hydra.job"),
        ("hydra:\n  job_logging: {root: {level: INFO}}\n", "sets hydra.job_logging"),
        ("defaults:\n  - override /hydra/launcher: submitit_local\n", "sets hydra.launcher"),
        ("allow_targets: [os]\n", "sets allow_targets"),
        (
            "hydra:\n  mode: MULTIRUN\n  sweeper:\n    _target_: os.system\n",
            "sets hydra.sweeper._target_",
        ),
        (f"{SWEEP}    params: {{allow_targets: '[logging]'}}\n", "params.allow_targets: only"),
        (f"{SWEEP}    params: {{hydra.sweep.subdir: /x, seed: '0,1'}}\n", "params.hydra.sweep.sub"),
        (f"{SWEEP}    params: {{+hydra.job.chdir: true}}\n", "params.+hydra.job.chdir: only"),
        (f"{SWEEP}    params: {{hydra/launcher: slurm}}\n", "params.hydra/launcher: must be a key"),
        (f"{SWEEP}    params: {{+sweeps@hydra.job.env_set: seeds}}\n", "seeds|must be a key"),
        (f"{SWEEP}    params: {{sweeps: seeds}}\n", "params.sweeps: only"),
        (f"{SWEEP}    params: {{backbone: ../sweeps/evil, seed: '0,1'}}\n", "sets hydra.job"),
        (f"{SWEEP}    params: '${{oc.create:{{seed: 0}}}}'\n", "params: must not hold references"),
        (f"{SWEEP}    params: [1, 2]\n", "params=.*: must be a node"),
        ("hydra:\n  sweeper: 5\n", "sweeper"),
        ("hydra:\n  overrides: {task: ['allow_targets=[os]']}\n", "sets hydra.overrides"),
        (
            "allow_targets: [os]\nhydra:\n  overrides: {task: ['allow_targets=[os]']}\n",
            "sets hydra.overrides|sets allow_targets",
        ),
        ("hydra:\n  runtime: {output_dir: /somewhere}\n", "sets hydra.runtime"),
        ("hydra:\n  mode: FOO\n", "In 'sweeps/mine': hydra.mode: Invalid value 'FOO'"),
        ("hydra: 5\n", "In 'sweeps/mine': Merge error: int is not"),
        ("a: b: c\n", "not valid YAML: .*mine.yaml"),
        ("algo:\n  ewc_lambda: '\\${oc.create:{a: 1}}'\n", "algo.ewc_lambda=.*must not hold"),
        ("algo:\n  ewc_lambda: ['\\${x}']\n", "algo.ewc_lambda.0.=.*must not hold"),
        (f"{SEARCH}    study_name: '${{oc.create:{{a: 1}}}}'\n", "study_name: must not hold"),
        (f"{SEARCH}    sampler: {{seed: '${{x}}'}}\n", "sampler.seed: must not hold references"),
        (f"{SEARCH}    sampler: x\n", "sampler"),
        (f"{SEARCH}    direction: {{_target_: a.B}}\n", "only a sampler may have one"),
        (f"{SEARCH}    storage: sqlite:////tmp/x.db\n", "sets hydra.sweeper.storage"),
        (f"{SEARCH}    sampler: {{_target_: subprocess.Popen}}\n", "must be a sampler"),
        (f"{SEARCH}    sampler: {{_target_: optuna.samplers.os.XSampler}}\n", "must be a sampler"),
        (f"{SEARCH}    sampler: {{x: {{_target_: a.B}}}}\n", "must not be there"),
        (
            f"{OPTUNA}    custom_search_space: os.getcwd\n",
            "sets hydra.sweeper.custom_search_space",
        ),
        ("trainig:\n  lr_decay: 0.5\n", "trainig"),
        ("algo:\n  ewc_lamda: 3\n", "ewc_lamda"),
    ],
)
def test_what_a_sweep_file_must_not_set(tmp_path, elsewhere, content, message):
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "sweeps" / "mine.yaml").write_text(f"# @package _global_\n{content}", encoding="utf-8")
    evil = "# @package _global_\nhydra:\n  job: {env_set: {PATH: x}}\n"
    (conf / "sweeps" / "evil.yaml").write_text(evil, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        preflight.check(["-m", "sweeps=mine", "algo=ewc"], conf)


@pytest.mark.ci
def test_an_unknown_reproduction_gets_a_suggestion(tmp_path, elsewhere):
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "reproductions" / "paper").mkdir(parents=True)
    (conf / "reproductions" / "paper" / "table_1.yaml").write_text(
        "# @package _global_\nseed: 3\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"paper/table_2: .*did you mean paper/table_1\?"):
        preflight.check(["reproductions=paper/table_2"], conf)
    (job,) = preflight.check(["reproductions=paper/table_1"], conf)
    assert job.config["seed"] == 3


@pytest.mark.ci
def test_included_files_are_checked_too(tmp_path, elsewhere):
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    header = "# @package _global_\n"
    (conf / "sweeps" / "outer.yaml").write_text(f"{header}defaults: [inner]\n", encoding="utf-8")
    (conf / "sweeps" / "inner.yaml").write_text(
        f"{header}hydra:\n  run: {{dir: /somewhere}}\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="inner.yaml: sets hydra.run"):
        preflight.check(["-m", "sweeps=outer"], conf)
    assert preflight.check(["hydra.run.dir=mine"], conf)  # the command line may set it


LAYERS = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n".join(["a0: &a0 [x]", *LAYERS]).encode(), "aliases that stand for over 100000 values"),
        (b"a: &a [*a]", "is nested too deeply"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
        (b"a: \xff", "is not UTF-8 text"),
    ],
    ids=["bomb", "cycle", "depth", "binary"],
)
def test_yaml_that_cannot_be_loaded(tmp_path, elsewhere, content, message):
    """It is refused in conf/ and in --config-dir; harmless aliases are allowed."""
    conf, own = tmp_path / "conf", tmp_path / "own"
    shutil.copytree(CONF, conf)
    (own / "algo").mkdir(parents=True)
    (own / "algo" / "mine.yaml").write_bytes(content)
    (conf / "sweeps" / "mine.yaml").write_bytes(content)
    for argv in (["-m", "sweeps=mine"], ["--config-dir", str(own), "algo=mine"]):
        with pytest.raises(ConfigError, match=message):
            preflight.check(argv, conf)
    (own / "algo" / "mine.yaml").unlink()
    aliased = "# @package _global_\ntraining: {lr_decay: &a 0.5, lr_min: *a}\n"
    (conf / "sweeps" / "mine.yaml").write_text(aliased, encoding="utf-8")
    (job,) = preflight.check(["-m", "sweeps=mine"], conf)
    assert job.config["training"]["lr_min"] == 0.5


@pytest.mark.ci
def test_process_ends_with_one_message_and_makes_nothing(run_py, elsewhere):
    done = run_py("algo=ewcc")
    assert done.returncode == preflight.BAD_INPUT
    assert done.stdout == ""
    assert done.stderr.startswith("error: algo=ewcc: must be one of ")
    assert done.stderr.endswith("(did you mean ewc?)\n") and done.stderr.count("\n") == 1
    assert not list(elsewhere.iterdir())


@pytest.mark.ci
def test_process_of_a_multirun_ends_before_its_first_job(run_py, elsewhere):
    done = run_py("-m", "algo=naive", "benchmark.num_tasks=2,0")
    assert done.returncode == preflight.BAD_INPUT
    assert done.stderr == "error: benchmark.num_tasks=0: must be an integer >= 1\n"
    assert not list(elsewhere.iterdir())


@pytest.mark.ci
def test_launcher_plugins_are_not_started_by_a_check(run_py, elsewhere):
    done = run_py("hydra/launcher=submitit_local", "algo=naive")
    assert done.returncode == preflight.BAD_INPUT
    assert "hydra/launcher=submitit_local: has no effect without -m" in done.stderr
    assert not list(elsewhere.iterdir())


def test_conf_is_found_from_anywhere():
    assert (ROOT / "conf" / "sweeps" / "seeds.yaml").is_file()
