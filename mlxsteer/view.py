"""A view of a tree of modules: a copy as shallow as can be, in which some modules call hooks.

Containers along the way to a hooked module are copied, and the module itself; their arrays and all
other modules are those of the tree. So a view changes nothing and costs next to nothing: it is made
for one call and forgotten. It knows nothing of models or taps.

    view = View(twin(model))
    view.hook(("model", "layers", 3), lambda call, args, kwargs: 2 * call(*args, **kwargs))
    view.root(tokens)
"""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

__all__ = ["Hook", "Route", "View", "first_of", "routes", "twin"]

Route = tuple[str | int, ...]  # names and indices from the root to a module
Hook = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def first_of(out: Any, edit: Callable[[mx.array], mx.array]) -> Any:
    """The stream is the first of what a module returns, if it returns several things."""
    if isinstance(out, (tuple, list)):
        return type(out)([edit(out[0]), *out[1:]])
    return edit(out)


class View:
    """A copy of a tree of modules, as shallow as can be, in which some call hooks."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.copies: dict[Route, Any] = {(): root}

    def own(self, route: Route) -> Any:
        """Return the view's own copy of what lies at a route."""
        if route not in self.copies:
            parent = self.own(route[:-1])
            node = parent[route[-1]]
            copied = twin(node) if isinstance(node, nn.Module) else copy.copy(node)
            parent[route[-1]] = self.copies[route] = copied
        return self.copies[route]

    def hook(self, route: Route, hook: Hook) -> None:
        """Let the module at a route be called through `hook(call, args, kwargs)`."""
        module: nn.Module = self.own(route)
        module.__class__ = _hooked(type(module))
        vars(module)["_hook"] = hook


def twin(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    """A module with the same arrays, children and attributes."""
    kind = kind or type(module)
    made: nn.Module = kind.__new__(kind)
    dict.update(made, module)
    vars(made).update(vars(module))
    return made


@functools.cache
def _hooked(kind: type[nn.Module]) -> type[nn.Module]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["_hook"](super(hooked, self).__call__, args, kwargs)

    names = {"__call__": call, "__module__": kind.__module__}
    hooked: type[nn.Module] = type(kind.__name__, (kind,), names)
    return hooked


def routes(node: Any, route: Route = ()) -> Iterator[tuple[Route, Any]]:
    """Yield every node of a tree of modules, lists and dicts with the route to it."""
    yield route, node
    if isinstance(node, dict):
        for name, child in node.items():
            yield from routes(child, (*route, name))
    elif isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from routes(child, (*route, i))
