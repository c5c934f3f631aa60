"""Robot Framework's side of the lab: ``Library    tinytrain_lite.robot.TinyTrain``."""

from tinytrain_lite.robot.keywords import TinyTrain

__all__ = ["TinyTrain"]
