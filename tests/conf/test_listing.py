"""`make list` is read from the files of conf/."""

from __future__ import annotations

from seqrun.cli import listing
from seqrun.cli.listing import CONF


def test_options_come_with_description_and_backends():
    by_name = {option.name: option for option in listing.options(CONF, "optimizer")}
    assert by_name["sgd"].backends == ("torch", "jax")
    assert {o.backends for o in listing.options(CONF, "logger")} == {("torch", "jax")}
    assert by_name["sgd"].description.startswith("Stochastic gradient descent")


def test_everything_in_conf_is_listed_once(capsys):
    listing.main()
    listed, group = {}, ""
    for line in capsys.readouterr().out.splitlines():
        if line[:2] == "  ":
            listed.setdefault(group, []).append(line.split()[0])
        else:
            group = line.partition("(")[2].partition("=")[0]
    for group in listing.GROUPS:
        names = [listing.path_name(CONF / group, path) for path in listing.files(CONF / group)]
        assert sorted(listed[group]) == sorted(names)


def test_backend_without_the_class_is_not_claimed(tmp_path):
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "x.yaml").write_text(
        "# Ours.\n_target_: seqrun.plan.${backend}.X\n", encoding="utf-8"
    )
    (option,) = listing.options(tmp_path, "algo")
    assert option == listing.Option("x", "Ours.", ())


def test_a_users_own_class_is_listed_with_its_one_backend(tmp_path, monkeypatch):
    (tmp_path / "my_l2.py").write_text(
        "from seqrun.algorithms.regularization.torch import RegularizationAlgorithm\n"
        "class L2(RegularizationAlgorithm):\n    pass\n",
        encoding="utf-8",
    )
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "l2.yaml").write_text("# Ours.\n_target_: my_l2.L2\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (option,) = listing.options(tmp_path, "algo")
    assert option == listing.Option("l2", "Ours.", ("torch",))


def test_every_file_of_conf_opens_with_its_description():
    """One line of plain text, which `make list` shows; a package directive may go first."""
    for path in [
        *CONF.rglob("*.yaml"),
        *(f for g in listing.GROUPS for f in listing.files(CONF / g)),
    ]:
        lines = path.read_text(encoding="utf-8").splitlines()
        opening = lines[1] if lines[0].startswith("# @package") else lines[0]
        assert opening.startswith("# ") and len(opening) > 20, path
