"""Where frames come from: a camera, a folder, a video file or a simulated line."""

from __future__ import annotations

from inspectord import settings
from inspectord.sources.base import FrameSource, Item, Shape

__all__ = ["FrameSource", "Item", "Shape", "open_source"]


def open_source(source: settings.Source, frame_shape: Shape | None, done: int = 0) -> FrameSource:
    """The source that the settings name, to be used by `with`; nothing is opened before.

    frame_shape is the recipe's (height, width, channels); None takes the shape of the first frame. A replay
    leaves out its first `done` triggers: after a crash it goes on, and no part gets a second verdict.
    """
    # Imported where needed: a replay must not load the camera libraries, nor a camera the renderer.
    match source:
        case settings.FolderSource():
            from inspectord.sources.folder import FolderFrames

            return FolderFrames(source, frame_shape, done)
        case settings.VideoSource():
            from inspectord.sources.video import VideoFrames

            return VideoFrames(source, frame_shape, done)
        case settings.LineSource():
            from inspectord.sources.line import LineFrames

            return LineFrames(source, frame_shape, done)
        case settings.GenicamSource():
            from inspectord.sources.genicam import GenicamFrames

            return GenicamFrames(source, frame_shape)
