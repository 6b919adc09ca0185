"""Attacks on the rule of what may run code, from outside, and what it lets through.

Each attack is a folder of files that somebody else wrote, used as the documentation says. It is
refused before Hydra acts on it, by the key, the file and the remedy.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.config import trust
from seqrun.config.compose import CONF

GLOBAL = "# @package _global_\n"
PICKLE = "{x: {_target_: numpy.load, file: x.npy, allow_pickle: true}}"
BETTER = "defaults: [ewc, _self_]\n"
HANDLER = "{version: 1, handlers: {f: {class: logging.FileHandler, filename: /tmp/x}}}"
PRIMARY = "defaults: [config, _self_]\n"
OWN = ("--config-dir", "own")
MY = (*OWN, "--config-name", "my")


def one(node: str) -> dict[str, str]:
    """Return the files of an algorithm that sets a key of Hydra's."""
    return {"algo/better.yaml": f"{GLOBAL}defaults: [ewc@algo]\nhydra: {{{node}}}\n"}


def primary(text: str) -> dict[str, str]:
    return {"my.yaml": PRIMARY + text}


BY_ALGORITHM = (*OWN, "algo=better")
SUBMITIT = (*OWN, "-m", "algo=better", "seed=0,1", "hydra/launcher=submitit_slurm")
OPTUNA = (*OWN, "-m", "algo=better", "seed=choice(0,1)", "hydra/sweeper=optuna")

ATTACKS: dict[str, tuple[dict[str, str], tuple[str, ...], str]] = {
    "a callback unpickles": (
        one(f"callbacks: {PICKLE}"),
        BY_ALGORITHM,
        r"own/algo/better.yaml: sets hydra.callbacks.x._target_=numpy.load: .*targets=.numpy\]",
    ),
    "logging writes to any file": (
        one(f"job_logging: {HANDLER}"),
        BY_ALGORITHM,
        "better.yaml: sets hydra.job_logging.*only the command line .*hydra.job_logging=",
    ),
    "Hydra's own logging too": (
        one(f"hydra_logging: {HANDLER}"), BY_ALGORITHM, "better.yaml: sets hydra.hydra_logging"
    ),
    "a primary configuration allows itself": (
        primary("allow_targets: [os]\n"),
        MY,
        r"own/my.yaml: sets allow_targets.*command line or SEQRUN_ALLOW_TARGETS",
    ),
    "an algorithm allows itself": (
        {"algo/better.yaml": f"{GLOBAL}defaults: [ewc@algo]\nallow_targets: [os]\n"},
        BY_ALGORITHM,
        "better.yaml: sets allow_targets",
    ),
    "environment": (
        one("job: {env_set: {LD_PRELOAD: x.so}}"), BY_ALGORITHM, "sets hydra.job.env_set.LD_PRELOAD"
    ),
    "environment copied": (
        one("job: {env_copy: [HOME]}"), BY_ALGORITHM, "sets hydra.job.env_copy"
    ),
    "commands of a launcher": (
        one("launcher: {setup: [touch made]}"), SUBMITIT, "sets hydra.launcher.setup.*command line"
    ),
    "options of a launcher": (
        one("launcher: {additional_parameters: {wrap: touch made}}"),
        SUBMITIT,
        "sets hydra.launcher.additional_parameters",
    ),
    "a second line in a launcher's script": (
        one(r'launcher: {comment: "x\ntouch made #"}'), SUBMITIT, "launcher.comment=.*one line"
    ),
    "a second line by way of the job's name": (
        one(r'job: {name: "x\ntouch made #"}'), SUBMITIT, "name=.*one line"
    ),
    "a second line by way of the folder": (
        primary('hydra: {sweep: {dir: "x\\ntouch made #"}}\n'),
        (*MY, "-m", "seed=0,1", "hydra/launcher=submitit_slurm"),
        "hydra.sweep.dir=.*one line",
    ),
    "a second line by reference": (
        {
            "algo/better.yaml": f'{GLOBAL}defaults: [ewc@algo]\nalgo: {{extra: "x\\ntouch made"}}\n'
            "hydra: {launcher: {comment: 'is ${algo.extra}'}}\n"
        },
        SUBMITIT,
        "hydra.launcher.comment=.*one line",
    ),
    "a launcher that is none": (
        one("launcher: {_target_: subprocess.Popen, args: touch made}"),
        BY_ALGORITHM,
        r"sets hydra.launcher._target_=subprocess.Popen: must be a launcher",
    ),
    "a launcher by way of a plugin": (
        one("launcher: {_target_: hydra_plugins.seqrun.slurm.subprocess.Popen}"),
        SUBMITIT,
        "sets hydra.launcher._target_=hydra_plugins.seqrun.slurm.subprocess.Popen",
    ),
    "a node within a launcher": (
        one("launcher: {name: {_target_: os.system}}"), SUBMITIT, "hydra.launcher.name"
    ),
    "a sweeper that is none": (
        one("sweeper: {_target_: os.system}"), BY_ALGORITHM, "sets hydra.sweeper._target_=os.system"
    ),
    "a function that a sweeper calls": (
        one("sweeper: {custom_search_space: os.getcwd}"), OPTUNA, "sweeper.custom_search_space"
    ),
    "a database with pickles": (
        one("sweeper: {storage: 'sqlite:///evil.db'}"), OPTUNA, "sets hydra.sweeper.storage"
    ),
    "a folder with such a database": (
        one("sweep: {dir: evil}"),
        (*OPTUNA, "hydra/sweeper/sampler=cmaes"),
        "better.yaml: sets hydra.sweep.dir: the sampler unpickles",
    ),
    "a sampler that is none": (
        one("sweeper: {sampler: {_target_: os.system}}"), OPTUNA, "must be a sampler"
    ),
    "a sampler by way of Optuna": (
        one("sweeper: {sampler: {_target_: optuna.samplers.os.XSampler}}"), OPTUNA, "be a sampler"
    ),
    "a search allows itself": (
        one("sweeper: {params: {allow_targets: '[os]'}}"), OPTUNA, "params.allow_targets: only"
    ),
    "a search of Hydra's keys": (
        one("sweeper: {params: {hydra.job.env_set.PATH: x}}"), OPTUNA, "params.hydra.job.env_set"
    ),
    "a search of places": (
        one("sweeper: {params: {+algo@hydra.callbacks.x: evil}}"), OPTUNA, "must be a key"
    ),
    "an option of a group of Hydra's": (
        {"my.yaml": "defaults: [config, {override hydra/job_logging: evil}]\n",
         "hydra/job_logging/evil.yaml": HANDLER},
        MY,
        "own/hydra/job_logging/evil.yaml: sets hydra.job_logging",
    ),
    "an option of Hydra's callbacks": (
        {"hydra/callbacks/evil.yaml": PICKLE},
        (*OWN, "hydra/callbacks=evil"),
        "own/hydra/callbacks/evil.yaml: sets hydra.callbacks.x._target_",
    ),
    "another place for a file": (
        {"my.yaml": "defaults: [config, algo/evil@hydra.callbacks]\n", "algo/evil.yaml": PICKLE},
        MY,
        "own/algo/evil.yaml: sets hydra.callbacks.x._target_",
    ),
    "another place in a file": (
        {"algo/evil.yaml": f"# @package hydra.callbacks\n{PICKLE}\n"},
        (*OWN, "+algo/evil@hydra.callbacks=evil", "+algo@hydra.callbacks=evil"),
        "algo",
    ),
    "another place for seqrun's own": (
        {"my.yaml": "defaults: [config, algo/ewc@hydra.callbacks.x]\n"},
        MY,
        "conf/algo/ewc.yaml: .*hydra.callbacks.x._target_",
    ),
    "a place that was typed": (
        {"algo/evil.yaml": PICKLE},
        (*OWN, "+algo@hydra.callbacks=evil"),
        "own/algo/evil.yaml: sets hydra.callbacks.x._target_",
    ),
    "a package on the search path": (
        primary("hydra: {searchpath: ['pkg://evil_package']}\n"),
        MY,
        "own/my.yaml: sets hydra.searchpath to pkg://evil_package",
    ),
    "a package by reference": (
        primary("x: pkg\nhydra: {searchpath: ['${x}://evil_package']}\n"), MY, "hydra.searchpath"
    ),
    "a node by reference": (
        {
            "algo/better.yaml": f"{GLOBAL}defaults: [ewc@algo]\nalgo: {{extra: {PICKLE}}}\n"
            "hydra: {callbacks: {x: '${algo.extra.x}'}}\n"
        },
        BY_ALGORITHM,
        r"hydra.callbacks.x: must not hold references",
    ),
    "all callbacks by reference": (
        one("callbacks: '${oc.create:${algo.extra}}'"), BY_ALGORITHM, "must not hold references"
    ),
    "a target by reference": (
        one("callbacks: {x: {_target_: 'numpy.${oc.decode:load}'}}"), BY_ALGORITHM, "_target_=numpy"
    ),
    "a job by reference": (
        one("job: '${algo.extra}'"), BY_ALGORITHM, "str is not a subclass of JobConf"
    ),
    "a launcher by reference": (
        one("launcher: {name: '${algo.extra}'}"), SUBMITIT, "name: must not hold references"
    ),
    "forged overrides": (
        one("overrides: {task: ['allow_targets=[os]']}"), BY_ALGORITHM, "sets hydra.overrides"
    ),
    "forged sources": (
        one("runtime: {config_sources: []}"), BY_ALGORITHM, "sets hydra.runtime.config_sources"
    ),
    "a launcher that shadows the default": (
        {"hydra/launcher/basic.yaml": "_target_: os.system\n"},
        OWN,
        "own/hydra/launcher/basic.yaml: sets hydra.launcher._target_=os.system",
    ),
    "a sampler that shadows seqrun's": (
        {"hydra/sweeper/sampler/tpe.yaml": "_target_: os.system\n"},
        (*OWN, "-m", "hydra/sweeper=optuna", "seed=choice(0,1)"),
        "own/hydra/sweeper/sampler/tpe.yaml: sets hydra.sweeper.sampler._target_=os.system",
    ),
    "on the search path": (
        one(f"callbacks: {PICKLE}"),
        ("hydra.searchpath=[file://own]", "algo=better"),
        "own/algo/better.yaml: sets hydra.callbacks.x._target_",
    ),
    "in the place of conf/": (
        {"config.yaml": f"hydra: {{callbacks: {PICKLE}}}\n"},
        ("--config-path", "own"),
        "own/config.yaml: sets hydra.callbacks.x._target_",
    ),
    "typed": (
        {}, ("+hydra.callbacks.x._target_=numpy.load",), r"x._target_=numpy.load: .*\[numpy\]"
    ),
    "a file that a search alone chooses": (
        {
            "algo/better.yaml": "defaults:\n- ewc\n- /optimizer@_global_: of_${optimizer}\n",
            "optimizer/sgd2.yaml": "defaults: [sgd]\n",
            "optimizer/of_sgd.yaml": GLOBAL,
            "optimizer/of_sgd2.yaml": f"{GLOBAL}hydra: {{callbacks: {PICKLE}}}\n",
        },
        (*OWN, "-m", "hydra/sweeper=optuna", "algo=choice(naive,better)",
         "optimizer=choice(sgd,sgd2)"),
        "own/optimizer/.*of_sgd2.yaml: sets hydra.callbacks.x._target_",
    ),
}  # fmt: skip


@pytest.fixture
def own(elsewhere: Path, monkeypatch) -> Callable[[dict[str, str]], None]:
    """Return a function that writes files into the folder `own`."""
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(elsewhere))  # no sbatch

    def write(files: dict[str, str]) -> None:
        for name, text in {"algo/.keep": "", **files}.items():
            path = elsewhere / "own" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return write


@pytest.mark.parametrize(
    "attack", [pytest.param(a, marks=[pytest.mark.ci] * (n > 5)) for n, a in enumerate(ATTACKS)]
)
def test_an_attack_is_refused(own, elsewhere, capfd, attack):
    files, argv, message = ATTACKS[attack]
    own(files)
    with pytest.raises(ConfigError, match=message) as refused:
        preflight.check(argv, CONF)
    assert "\n" not in str(refused.value)
    assert {path.name for path in elsewhere.iterdir()} == {"own"}


@pytest.mark.ci
def test_nothing_is_run_before_the_refusal(own, run_py, elsewhere):
    """Hydra would import the package to look for files, and make the callback."""
    (elsewhere / "evil_package").mkdir()
    code = "open('made', 'w')\nclass Callback: pass\n"
    (elsewhere / "evil_package" / "__init__.py").write_text(code, encoding="utf-8")
    own({
        **one("callbacks: {x: {_target_: evil_package.Callback}}"),
        **primary("hydra: {searchpath: ['pkg://evil_package']}\n"),
    })  # fmt: skip
    for argv in (BY_ALGORITHM, MY, (*MY, "--cfg", "job")):
        done = run_py(*argv, PYTHONPATH=str(elsewhere))
        assert done.returncode == preflight.BAD_INPUT
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert {path.name for path in elsewhere.iterdir()} == {"own", "evil_package"}


ALLOWED = {
    "what a laboratory sets": (
        primary("hydra: {run: {dir: mine}, job: {chdir: true}, verbose: true}\n"), MY
    ),
    "a launcher's resources": (
        one("launcher: {gpus_per_node: 2, submitit_folder: '${hydra.sweep.dir}/s'}"),
        SUBMITIT,
    ),
    "a launcher": (
        {"my.yaml": "defaults: [config, {override hydra/launcher: submitit_local}]\n"},
        (*MY, "-m", "seed=0,1"),
    ),
    "commands that were typed": (
        one("launcher: {partition: gpu}"), (*SUBMITIT, "hydra.launcher.setup=[module load cuda]")
    ),
    "a search": (
        {"sweeps/s.yaml": f"{GLOBAL}hydra: {{sweeper: {{params: {{seed: '0,1'}}}}}}"},
        (*OWN, "-m", "sweeps=s"),
    ),
    "Hydra's own callbacks": (
        one("callbacks: {x: {_target_: hydra.experimental.callbacks.LogJobReturnCallback}}"),
        BY_ALGORITHM,
    ),
    "callbacks of an allowed package": (
        one("callbacks: {x: {_target_: mypkg.Hears}}"), (*BY_ALGORITHM, "allow_targets=[mypkg]")
    ),
    "a folder on the search path": (
        {"my.yaml": f"{PRIMARY}hydra: {{searchpath: ['file://own/more']}}\n",
         "more/algo/other.yaml": "defaults: [/algo/ewc@_here_]\n"},
        (*MY, "algo=other"),
    ),
    "a copy of conf/": (
        {path.relative_to(CONF).as_posix(): path.read_text(encoding="utf-8")
         for path in CONF.rglob("*.yaml")},
        ("--config-path", "own"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ALLOWED)
def test_what_a_file_may_set(own, case):
    files, argv = ALLOWED[case]
    own(files)
    assert preflight.check(argv, CONF)


def test_the_environment_allows_too(own, jobs_of, mypkg, monkeypatch):
    """Jobs inherit what the command was allowed."""
    mine = "+callbacks.mine._target_=mypkg.Fails"
    with pytest.raises(ConfigError, match=r"allow_targets=\[mypkg\]"):
        jobs_of(mine)
    monkeypatch.setenv(trust.VARIABLE, "other, mypkg")
    (job,) = jobs_of(mine)
    assert job.config["allow_targets"] == ["other", "mypkg"]


REFUSED = """
builtins.eval flax.io.rmtree flax.linen.module.os.system flax.nnx.module.pickle.loads
functools.partial flax.serialization.msgpack_restore hydra.utils.call hydra.utils.get_method
hydra.utils.instantiate importlib.import_module jax.nn.functools.partial jax.numpy.load
jax.nn.functions.Any joblib.load logging.FileHandler numpy.load numpy.lib.npyio.NpzFile
operator.attrgetter optax.jax.numpy.load optax._src.base.Any os.system pickle.load runpy.run_path
seqrun.files.remove_temporaries seqrun.records.results.Path seqrun.runs.processes.run_in_processes
seqrunx.Popen shutil.rmtree subprocess.Popen torch.hub.load torch.jit.load torch.load
torch.nn.Module.load_state_dict torch.nn.modules.module.torch.load
torch.nn.modules.module.functools.partial torch.nn.Parameter torch.nn.parallel.distributed.pickle
torch.optim.optimizer.Any torch.package.PackageImporter torch.nn.utils.clip_grad_norm_
torch.optim.Optimizer.load_state_dict torch.serialization.load torch.utils.cpp_extension.load
torch.utils.data.DataLoader torchvision.datasets.CIFAR10 torchvision.datasets.EMNIST
torchvision.datasets.DatasetFolder torchvision.io.read_file
torchvision.datasets.utils.extract_archive torchvision.datasets.mnist.MNIST
torchvision.models.resnet.partial torchvision.models._api.load_state_dict_from_url
torchvision.models.feature_extraction.create_feature_extractor
torchvision.models.get_model_builder torchvision.transforms.transforms.torch.load
timm.models.load_checkpoint timm.create_modelx
""".split()


@pytest.mark.parametrize("target", REFUSED)
def test_what_an_experiment_must_not_name(target):
    with pytest.raises(
        ConfigError, match="must name a class of seqrun|no class|no module|not inst"
    ):
        trust.find(f"x={target}", target)


@pytest.mark.parametrize("target", [3, None, "os", "a b.c", "a..b", "${x}.y", "os.system()", ".a"])
def test_what_is_no_name(target):
    with pytest.raises(ConfigError, match="must be the dotted name"):
        trust.find(f"x={target}", target, ["os", "a"])


NAMED = """
flax.linen.Dense flax.linen.relu flax.linen.initializers.he_normal flax.nnx.Linear
flax.nnx.Sequential jax.nn.relu jax.nn.initializers.he_normal optax.adamw optax.chain optax.lion
optax.contrib.sam seqrun.callbacks.MetricCallback torch.nn.BatchNorm1d
torch.nn.modules.linear.Linear torch.optim.AdamW torch.optim.lr_scheduler.StepLR
torchvision.datasets.MNIST torchvision.models.ResNet torchvision.models.resnet18
torchvision.models.resnet.resnet50 torchvision.transforms.Compose
torchvision.transforms.v2.RandomCrop
""".split()


@pytest.mark.parametrize("target", NAMED)
def test_what_an_experiment_may_name(target):
    assert callable(trust.find(f"x={target}", target))


def test_models_of_timm(monkeypatch, tmp_path):
    """Only timm's own, by name."""
    (tmp_path / "timm.py").write_text("def create_model(model_name, **kwargs): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert trust.find("x", trust.TIMM)
    trust.check_call("x", trust.TIMM, {"model_name": "vit_small_patch16_224", "pretrained": True})
    bad: tuple[dict, ...] = (
        {"model_name": "hf-hub:evil/model"},
        {"_args_": ["local-dir:/tmp/evil"]},
        {"_args_": ["resnet18", False, {"file": "x.pth"}]},
        {"model_name": "resnet18", "checkpoint_path": "x.pth"},
        {"model_name": "resnet18", "pretrained_cfg_overlay": {"file": "x.pth"}},
    )
    for node in bad:
        with pytest.raises(ConfigError, match="timm|must not be given"):
            trust.check_call("x", trust.TIMM, node)


def test_the_working_directory_is_searched_last(elsewhere, monkeypatch):
    """And only where something is allowed."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(elsewhere)])
    (elsewhere / "here.py").write_text("class Mine: pass\n", encoding="utf-8")
    trust.find("x", "seqrun.callbacks.MetricCallback")
    assert str(elsewhere) not in sys.path
    assert trust.find("x", "here.Mine", ["here"]).__name__ == "Mine"
    assert sys.path[-1] == str(elsewhere)


@pytest.mark.ci
def test_the_command_finds_a_package_beside_it(run_py, elsewhere):
    code = "from seqrun.callbacks import BaseCallback\nclass Mine(BaseCallback): pass\n"
    (elsewhere / "beside.py").write_text(code, encoding="utf-8")
    mine = ("algo=naive", "benchmark.num_tasks=1", "benchmark.samples_per_task=20")
    argv = (*mine, "+callbacks.mine._target_=beside.Mine", "allow_targets=[beside]")
    command = [sys.executable, "-m", "seqrun", *argv]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert run_py(*argv, "seed=1", "hydra.job.chdir=true").returncode == 0
