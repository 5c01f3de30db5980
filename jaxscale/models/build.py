"""From a `model:` section to a function that builds the module: ours by family, or the user's own."""

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from flax import nnx

from jaxscale.config.model_section import ModelSection
from jaxscale.errors import UserError
from jaxscale.models.description import Build
from jaxscale.models.families import resolve
from jaxscale.models.transformer import Transformer


def model_builder(section: ModelSection) -> Build:
    """The function that makes the module from random streams.

    Raises UserError where sizes do not fit, for a model that can only be planned yet, or where the user's builder is
    not found, cannot be called as function(rngs=..., **args), or (when called) returns something other than an
    nnx.Module.
    """
    if section.planned_only:
        raise UserError(
            "models with experts or latent_attention can be planned (jaxscale plan), not built or trained yet: leave "
            "model.experts and model.latent_attention out"
        )
    if section.build is None:
        return functools.partial(Transformer, resolve(section))
    return _user_build(section.build, section.args)


def _user_build(target: str, args: Mapping[str, Any]) -> Build:
    function = load_function(target)
    _check_arguments(target, function, args)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        module = function(rngs=rngs, **args)
        if not isinstance(module, nnx.Module):
            raise UserError(
                f"{target} returned {type(module).__name__}: it must return the model, an nnx.Module"
            )
        return module

    return build


def load_function(target: str) -> Callable[..., Any]:
    """The function or class at 'package.module:name' or 'file.py:name'; UserError says which part was not found."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UserError(
            f"{target!r} does not name a function: write 'package.module:function' or 'file.py:function'"
        )
    module = _load_file(Path(place)) if place.endswith(".py") else _import(place)
    function = getattr(module, name, None)
    if function is None:
        raise UserError(f"{place} has no {name!r}. It defines: {', '.join(_own_callables(module))}")
    if not callable(function):
        raise UserError(
            f"{target} is of type {type(function).__name__}: it must be a function or class"
        )
    return cast("Callable[..., Any]", function)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no file {path} (looked in {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # Something that the user's module itself imports is missing: show that traceback.
        raise UserError(
            f"there is no module {error.name!r}: install it, run from its folder with PYTHONPATH=., or name the file "
            "('path/to/file.py:function')"
        ) from error


def _own_callables(module: ModuleType) -> list[str]:
    return sorted(
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    )


def _check_arguments(target: str, function: Callable[..., Any], args: Mapping[str, Any]) -> None:
    signature = _signature(function)
    try:
        signature.bind(rngs=None, **args)
    except TypeError as error:
        raise UserError(
            f"{target}{signature} cannot be called with rngs and args {sorted(args)}: {error}"
        ) from error


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    if not isinstance(function, type):
        return inspect.signature(function)
    # The metaclass of NNX modules takes anything, so the constructor says what fits; its `self` is not ours to give.
    initializer = inspect.signature(inspect.getattr_static(function, "__init__"))
    return initializer.replace(parameters=list(initializer.parameters.values())[1:])
