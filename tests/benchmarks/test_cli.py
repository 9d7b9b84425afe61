import json
import re
import shutil

import pytest
import typer
from typer.testing import CliRunner

from tvau_edge.benchmarks.cli import check, eval_verb, sheet
from tvau_edge.benchmarks.errors import DataError
from tvau_edge.benchmarks.figures import EvaluationFile
from tvau_edge.runtime import cli
from tvau_edge.runtime.errors import BackendError, ConfigError, MissingExtraError

app = typer.Typer()
app.command("eval")(eval_verb)
app.command("check")(check)
app.command("sheet")(sheet)


def run(*arguments, width="200"):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": width})


def test_several_bundles_in_one_table_as_json_and_with_pictures(squares, bright_bundle, tmp_path):
    other = shutil.copytree(bright_bundle.path, tmp_path / "other")
    out, pictures = tmp_path / "figures.json", tmp_path / "pictures"
    done = run(
        *("eval", "--bundle", bright_bundle.path, "--bundle", other, "--data", squares, "--no-dialogue"),
        *("--json", out, "--pictures", pictures),
    )
    assert done.exit_code == 0, done.output
    report = EvaluationFile.model_validate_json(out.read_text())
    assert [figures.bundle for figures in report.figures] == [str(bright_bundle.path), str(other)]
    assert report.figures[0].detection == report.figures[1].detection
    assert done.stdout.count("100.00") == 10
    assert "Answers" not in done.stdout
    assert sorted(path.name for path in pictures.glob("0/*")) == ["alarms.png", "hits.png", "misses.png"]
    assert len(list(pictures.glob("1/*"))) == 3


def test_with_the_dialogue_and_ablations(squares, talking_bundle, tmp_path):
    out = tmp_path / "figures.json"
    done = run(
        *("eval", "--bundle", talking_bundle.path, "--data", squares, "--precision", "fp32", "--llm", "f32"),
        *("--ablations", "--threads", 1, "--json", out),
    )
    assert done.exit_code == 0, done.output
    assert "Answers" in done.stdout
    (figures,) = json.loads(out.read_text())["figures"]
    assert figures["answers"]["asked"] == 6
    assert set(figures["ablations"]) == {"without RAE", "without AHD and RAE"}


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (
            ("--precision", "int4"),
            BackendError,
            "at precision int4; it has: onnxruntime fp32",
        ),
        (("--split", "train"), DataError, "has no list of the train split"),
        (("--json", "FOLDER"), ConfigError, "--json .*: cannot be written: it is a folder"),
        (("--pictures", "FILE"), ConfigError, "--pictures .*: cannot be written"),
    ],
)
def test_mistakes_are_named_before_the_work(squares, bright_bundle, tmp_path, arguments, error, says):
    (tmp_path / "file").write_text("")
    places = {"FOLDER": str(tmp_path), "FILE": str(tmp_path / "file")}
    arguments = [places.get(argument, argument) for argument in arguments]
    done = run("eval", "--bundle", bright_bundle.path, "--data", squares, "--no-dialogue", *arguments)
    assert isinstance(done.exception, error)
    assert re.search(says, str(done.exception))


def test_a_contact_sheet(squares, tmp_path):
    done = run("sheet", squares, "--out", tmp_path / "sheet.png")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_drawing_needs_an_extra_that_checking_does_not(monkeypatch):
    monkeypatch.setattr(cli, "installed", lambda extra: extra != "reference")
    data = typer.Typer()
    cli.add_verbs(data, "tvau.data", "tvau data")
    with pytest.raises(MissingExtraError, match=r"tvau data draw needs the extra 'reference'"):
        data(["draw", "--out", "x"], standalone_mode=False)
    assert {command.name for command in data.registered_commands} == {"check", "draw", "sheet"}
