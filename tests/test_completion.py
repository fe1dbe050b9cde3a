"""Completion by the tab key: the scripts, the words, and when they are looked up anew."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from test_commands import refused, write

from mtlprune_bench.commands import _completion as completion
from mtlprune_bench.commands import cli
from mtlprune_bench.commands._completion import completing, known_words, state

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Give the test a cache folder of its own."""
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def completed(kind, incomplete, plugins=()):
    ctx = click.Context(click.Command("run"))
    ctx.meta[completion.PLUGINS] = plugins
    return [item.value for item in completing(kind)(ctx, click.Option(["--any"]), incomplete)]


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("bash", "complete -o nosort -F _mtlbench_completion mtlbench"),
        ("zsh", "#compdef mtlbench"),
        ("fish", "complete "),
    ],
)
def test_the_script_of_each_shell(mtlbench, shell, words):
    answer = mtlbench("completion", shell)
    assert answer.code == 0
    assert words in answer.out
    assert f"_MTLBENCH_COMPLETE={shell}_complete" in answer.out


def test_another_shell_is_refused(mtlbench):
    refused(mtlbench("completion", "csh"), "'csh'", "bash", "zsh", "fish")


def test_bash_reads_the_script(mtlbench, tmp_path):
    script = write(tmp_path / "script", mtlbench("completion", "bash").out)
    done = subprocess.run(
        ["bash", "-c", f"source {script} && complete -p mtlbench"], capture_output=True, text=True
    )
    assert "_mtlbench_completion" in done.stdout, done.stderr


def test_names_after_a_comma_and_of_plugins(cache):
    assert completed("methods", "disparse-") == ["disparse-dynamic", "disparse-pretrained", "disparse-static"]
    assert completed("methods", "snip,disparse-s") == ["snip,disparse-static"]
    assert completed("models", "tim") == ["timm:"]
    assert completed("scopes", "p") == ["per-task"]
    assert completed("settings", "method.score.b") == ["method.score.batches="]
    assert completed("settings", "train.lr_") == ["train.lr_decay=", "train.lr_decay_every="]
    assert completed("methods", "toy") == []
    assert completed("methods", "toy", (PLUGIN,)) == ["toy-finetune", "toy-late", "toy-lottery"]


def test_no_completion_where_plugins_cannot_be_loaded(cache):
    assert completed("methods", "", ("no_such_plugin.py",)) == []


def test_words_are_kept_and_torch_is_not_imported_for_them(cache):
    known_words()
    code = (
        "import sys; from mtlprune_bench.commands._completion import known_words; "
        "print('snip' in known_words()['methods'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_words_are_looked_up_anew_where_a_plugin_changes(cache, tmp_path):
    text = (
        "from mtlprune_bench import Method, hookimpl, magnitude, once\nprint('noise')\n\n\n@hookimpl\n"
        "def register_methods(register):\n    register(Method(name='mine', score=magnitude(), schedule=once()))\n"
    )
    path = write(tmp_path / "mine.py", text)
    assert "mine" in known_words([path])["methods"]
    assert known_words([path]) == known_words([path])
    write(tmp_path / "mine.py", text.replace("'mine'", "'yours'"))
    assert {"mine", "yours"} & known_words([path])["methods"].keys() == {"yours"}
    (cache / completion.FILE).write_text("{")
    with pytest.warns(UserWarning, match=r"completion\.json"):
        assert "yours" in known_words([path])["methods"], "what is damaged is made again"


def test_what_is_kept_depends_on_plugins_and_what_is_blocked(tmp_path, monkeypatch):
    states = [state([], []), state([PLUGIN], []), state([], ["methods.snip"])]
    monkeypatch.setenv("MTLBENCH_BLOCKED", "methods.snip")
    states.append(state([], []))
    monkeypatch.setenv("MTLBENCH_PLUGINS", PLUGIN)
    states.append(state([], []))
    assert len(set(states)) == 5


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    write(tmp_path / "file", "")
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "file" / "cache"))
    assert "snip" in known_words()["methods"]


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        (["run", "--method"], "disparse-s", ["disparse-static"]),
        (["run", "--dataset"], "nyuv2-13-", ["nyuv2-13-3task"]),
        (["plan", "--model"], "tim", ["timm:"]),
        (["plan", "--arbiter"], "maj", ["majority"]),
        (["run", "--runner"], "sl", ["slurm"]),
        (["suite", "run", "x.toml", "--set"], "method.score.b", ["method.score.batches="]),
        (["run", "--plugin", PLUGIN, "--method"], "toy-la", ["toy-late"]),
    ],
)
def test_options_complete_what_they_name(cache, words, incomplete, expected):
    complete = BashComplete(cli, {}, "mtlbench", "_MTLBENCH_COMPLETE")
    assert [item.value for item in complete.get_completions(words, incomplete)] == expected
