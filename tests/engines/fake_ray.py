"""A Ray of this process: calls of an actor run where they are made, and actors die when a test wants it."""

from __future__ import annotations

import importlib.machinery
import types
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class RayError(Exception):
    """As Ray's own: what befell an actor."""


class RayTaskError(RayError):
    """As Ray's own: a call raised, and this is what."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class FakeRay:
    """Stands in the place of the module `ray`; `dies(method, arguments)` says which calls an actor does not survive."""

    def __init__(self, *, cpus: float = 2, dies: Callable[..., bool] = lambda *_: False) -> None:
        self.__spec__ = importlib.machinery.ModuleSpec("ray", None)
        self.exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.cpus, self.dies = cpus, dies
        self.actors: list[_Actor] = []
        self.asked: list[dict[str, Any]] = []

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cpus}

    available_resources = cluster_resources

    def kill(self, actor: _Actor, no_restart: bool) -> None:
        assert no_restart
        actor.alive = False

    def remote(self, kind: type) -> Any:
        def options(**resources: Any) -> Any:
            self.asked.append(resources)
            return types.SimpleNamespace(remote=lambda: _Actor(self, kind()))

        return types.SimpleNamespace(options=options)


class _Actor:
    def __init__(self, ray: FakeRay, itself: Any) -> None:
        self.ray, self.itself, self.alive = ray, itself, True
        ray.actors.append(self)

    def __getattr__(self, method: str) -> Any:
        return types.SimpleNamespace(remote=lambda *arguments: self.call(method, arguments))

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        future: Future[Any] = Future()
        self.alive = self.alive and not self.ray.dies(method, *arguments)
        if not self.alive:
            future.set_exception(RayError("the actor died\nWorker exit detail: killed"))
        else:
            try:
                future.set_result(getattr(self.itself, method)(*arguments))
            # As Ray hands on whatever a call raised.
            except Exception as error:  # noqa: BLE001
                future.set_exception(RayTaskError(error))
        return types.SimpleNamespace(future=lambda: future)
