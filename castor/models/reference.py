"""`ModelReference` under the name of its first place; see `castor.model_reference`."""

from castor.model_reference import ModelReference

__all__ = ["ModelReference"]
