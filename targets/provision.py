"""The agent as one archive: the same bytes each time, so that its hash names its version."""

from __future__ import annotations

import io
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

from flatsat.canonical import sha256_bytes

PACKAGE = "flatsat_agent"
_MAIN = f"from {PACKAGE}.start import main\n\nraise SystemExit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def agent_zip() -> bytes:
    """Return the agent as a `.pyz`: `python agent.pyz --store DIR` serves a session on its stdin.

    Members are sorted, stored without compression (whose output differs between zlib versions) and
    dated alike.
    """
    members = {"__main__.py": _MAIN.encode()}
    # What decodes coded weights is shared with the host: `coded` is a link.
    for package, folder in (("", "flatsat.targets.agent"), ("coded/", "flatsat.coded")):
        for entry in resources.files(folder).iterdir():
            if entry.name.endswith(".py"):
                members[f"{PACKAGE}/{package}{entry.name}"] = entry.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, members[name])
    return buffer.getvalue()


def write_agent(folder: Path) -> Path:
    """Put the archive into `folder` under a name with its hash, and return its path.

    Raises:
        OSError: the folder can't be written.
    """
    data = agent_zip()
    path = folder / f"flatsat-agent-{sha256_bytes(data)[:16]}.pyz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as stream:
            stream.write(data)
        Path(stream.name).replace(path)
    return path
