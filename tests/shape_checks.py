"""Checks annotations, with the shapes of arrays, at every call of the modules in conftest's CHECKED."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float
