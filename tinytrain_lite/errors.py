"""Errors a user can cause and mend. The CLI prints them without a traceback and exits with code 2."""


class TinyTrainError(Exception):
    """Base of every error that names its input, the reason and the mend."""


class GraphError(TinyTrainError):
    """A graph breaks a rule of the IR; the message names the op."""


class UnsupportedError(TinyTrainError):
    """A model, an op or a scheme asks for something this system does not do."""


class DoesNotFitError(TinyTrainError):
    """The model does not fit the board; the message says by how many bytes and because of what."""


class DatasetError(TinyTrainError):
    """A data set that is missing, damaged or too small for what was asked."""
