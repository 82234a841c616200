"""Every error that a user can meet: it says what, where, and what to do next, and has an exit code."""


class InspectordError(Exception):
    """Base of all errors shown to a user in one line; exit_code follows sysexits(3)."""

    exit_code = 70


class SettingsError(InspectordError):
    """The configuration file or the environment is wrong."""

    exit_code = 78


class RecipeError(InspectordError):
    """A recipe is missing, damaged, altered or made for something else."""

    exit_code = 65


class ParityError(RecipeError):
    """The compiled model does not repeat the recipe's golden scores."""


class SourceError(InspectordError):
    """A camera, folder or file can't be opened or stops delivering."""

    exit_code = 69


class FrameError(InspectordError):
    """A frame or image is not what the recipe needs."""

    exit_code = 65


class RingError(InspectordError):
    """The shared memory for frames can't be had."""

    exit_code = 71


class StateError(InspectordError):
    """A state directory, journal or socket can't be used."""

    exit_code = 73


class AccessError(InspectordError):
    """The rights to write a file of the system are missing."""

    exit_code = 77


class MessageError(InspectordError):
    """Bytes that are no message of this version."""

    exit_code = 65


class FitError(InspectordError):
    """The good frames can't give a recipe."""

    exit_code = 65


class JournalError(InspectordError):
    """A journal is no longer what was written, or can't be read."""

    exit_code = 65
