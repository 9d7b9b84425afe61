"""A wheel of the name tvau-edge whose command only speaks."""

import zipfile


def make_wheel(folder, version="0.1.0", body="def main():\n    print('tvau')\n"):
    """A wheel of the name tvau-edge whose command only speaks."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"tvau_edge-{version}.dist-info"
    files = {
        "tvau_edge/__init__.py": body,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tvau-edge\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntvau = tvau_edge:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    path = folder / f"tvau_edge-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path
