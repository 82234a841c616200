"""What `inspectord check` can see of the world without opening a camera or disturbing a running daemon."""

from __future__ import annotations

import tempfile

from inspectord.errors import FrameError, StateError
from inspectord.keys import server_keys
from inspectord.recipe import Recipe
from inspectord.settings import Camera, FolderSource, GenicamSource, Settings, VideoSource
from inspectord.sources.files import list_images, read_image
from inspectord.zap import needs_keys


def check_state_dir(settings: Settings) -> None:
    """Raises StateError where the journal could not be written."""
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=settings.state_dir).close()
    except OSError as error:
        raise StateError(
            f"can't write to state_dir {settings.state_dir} ({error.strerror}); "
            "check its owner, or choose another"
        ) from error


def check_keys(settings: Settings) -> None:
    """Raises SettingsError where nobody could be let in."""
    if needs_keys(settings.security, settings.publish):
        server_keys(settings.security.keys_dir)


def check_source(camera: Camera, recipe: Recipe) -> None:
    """Raises SourceError for files that are not there, FrameError for images that are not the recipe's."""
    source = camera.source
    if isinstance(source, FolderSource):
        first = list_images(source.path)[0]
        shape, wanted = read_image(first).shape, recipe.spec.frame.shape
        if shape[2] != wanted[2] or (shape != wanted and not source.letterbox):
            raise FrameError(
                f"camera {camera.name}: {first} is {shape}, recipe {recipe.id} needs {wanted} "
                "(height, width, channels); set letterbox = true for other sizes, or fit on such images"
            )
    elif isinstance(source, VideoSource):
        from inspectord.sources.video import open_video

        open_video(source.path).release()
    elif isinstance(source, GenicamSource):
        from inspectord.sources.device import check_producer

        check_producer(source)
