import typer
from typer.testing import CliRunner

from tvau_edge.reference import calibrate
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.language.calibration import YesCalibration


def test_a_curve_is_fitted_for_one_bundle_and_one_model(shipped_bundle, cache, tmp_path):
    app = typer.Typer()
    app.command()(calibrate.main)
    out = tmp_path / "calibration.json"
    done = CliRunner().invoke(
        app,
        ["--bundle", str(shipped_bundle), "--count", "20", "--split", "familiar", "--cache", str(cache),
         "--out", str(out), "--plot", str(tmp_path / "plot.png")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    fitted = YesCalibration.model_validate_json(out.read_text())
    assert fitted.bundle == Bundle.open(shipped_bundle).sha256
    assert fitted.slope > 0
    assert fitted.windows > 20
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
