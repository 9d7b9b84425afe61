"""A real RTSP server for the tests, GStreamer's own: `rtsp_server.py PORT CLIP` serves an H.264 clip at /clip.

Run by the system's Python, which has GStreamer's bindings (Debian: python3-gi, gir1.2-gst-rtsp-server-1.0).
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

port, clip = sys.argv[1:]
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( filesrc location={clip} ! qtdemux ! h264parse ! rtph264pay name=pay0 config-interval=-1 )"
)
server.get_mount_points().add_factory("/clip", factory)
server.attach(None)
sys.stdout.write("serving\n")
sys.stdout.flush()
GLib.MainLoop().run()
