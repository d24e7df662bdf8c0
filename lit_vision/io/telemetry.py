"""Keep libraries from reporting their use to a server."""

import sys


def block_telemetry() -> None:
    """Make OpenVINO's converter and NNCF leave out their reports to a server; call it before they are imported.

    Both leave them out where the package that sends them cannot be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
