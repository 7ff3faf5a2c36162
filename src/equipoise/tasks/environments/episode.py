"""An episode: one environment behind a guard, so that whatever it does is an outcome and never the end of the run.

An environment is a class as TRL's `environment_factory` wants it: `reset(**row)` returns the first observation or None,
every other public method is a tool with typed arguments and a docstring (they become the schema that the model sees),
and `get_reward()` scores the episode. `guarded` turns it into a factory of the same tools whose steps run in a thread
of their own, with a limit on their number and on the time of each.
"""

import functools
import inspect
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from equipoise.errors import InputError
from equipoise.tasks.datasets import one_line, shortened
from equipoise.tasks.task import MAX_REWARD
from equipoise.tasks.terms import nearest

Outcome = Literal["open", "step_limit", "timeout", "error", "nonsense"]
FAILURES = ("timeout", "error", "nonsense")

OVER = "The episode is over."
MAX_OBSERVATION = 100_000  # characters; more is no observation


@dataclass(frozen=True)
class EpisodeLimits:
    """What an episode may take.

    Attributes:
        max_steps: tool calls, >= 1; later ones are answered with "The episode is over."
        step_seconds: for a reset, a step or the score, > 0.
    """

    max_steps: int = 16
    step_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.max_steps < 1 or not 0 < self.step_seconds <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"an episode needs max_steps >= 1 and step_seconds > 0, got max_steps={self.max_steps} and "
                f"step_seconds={self.step_seconds}"
            )


class Episode:
    """The guard around one environment; `guarded` makes subclasses that have its tools. Reused after every `reset`.

    What the model gets wrong is part of the task: arguments that do not fit, and a ValueError that a tool raises, are
    shown to it as the observation. A reset, step or score that takes too long, raises anything else, or returns what is
    no observation or no finite number makes the episode a failed one, with its cause.
    """

    _factory: Callable[[], Any]
    _tools: Mapping[str, inspect.Signature]
    _limits: EpisodeLimits

    def __init__(self) -> None:
        self._environment: Any = None
        self._runner: _Runner | None = None
        self._begun: deque[tuple[str, dict[str, Any], Future]] = deque()
        self._start("open")

    def _start(self, outcome: Outcome) -> None:
        self.outcome: Outcome = outcome
        self.cause = ""
        self.num_steps = 0

    @property
    def failed(self) -> bool:
        """Whether the environment failed, by whatever cause."""
        return self.outcome in FAILURES

    def reset(self, **row: Any) -> Any:
        """Begin a new episode; the first observation, or None when there is none or the environment failed."""
        if self._runner is None or self.failed or self._begun:
            self._environment = None  # what hangs or is broken is not used again
            self._runner = _Runner()
            self._begun.clear()
        self._start("open")
        runner = self._runner

        def begin() -> Any:
            if self._environment is None:
                environment = self._factory()
                if self._runner is runner:  # else this came back after it was given up
                    self._environment = environment
                return environment.reset(**row)
            return self._environment.reset(**row)

        observation = self._waited(runner.submit(begin), "reset")
        if self.failed or observation is None:
            return None
        observation = self._observation(observation, "reset")
        return None if self.failed else observation

    def _begin(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Start a step whose result will be asked for later, so that the steps of several episodes run side by side."""
        if name in self._tools and not self._refusal(name, arguments) and self._may_step(ahead=len(self._begun)):
            self._begun.append((name, dict(arguments), self._submitted(name, arguments)))

    def _step(self, name: str, arguments: dict[str, Any]) -> Any:
        if not self._may_step():
            if not self.failed:
                self.outcome = "step_limit"
            return OVER
        self.num_steps += 1
        refusal = self._refusal(name, arguments)
        if refusal:
            return refusal
        if self._begun and self._begun[0][:2] == (name, arguments):
            future = self._begun.popleft()[2]
        else:
            future = self._submitted(name, arguments)
        result = self._waited(future, name)
        return OVER if self.failed else self._observation(result, name)

    def _may_step(self, ahead: int = 0) -> bool:
        return not self.failed and self.num_steps + ahead < self._limits.max_steps

    def _refusal(self, name: str, arguments: Mapping[str, Any]) -> str:
        try:
            self._tools[name].bind(None, **arguments)
        except TypeError as error:
            return f"error: {error}"
        return ""

    def _submitted(self, name: str, arguments: Mapping[str, Any]) -> Future:
        assert self._runner is not None
        environment = self._environment

        def step() -> Any:
            try:
                return getattr(environment, name)(**arguments)
            except ValueError as error:  # the model's mistake, for the model to see
                return str(error) or "error"

        return self._runner.submit(step)

    def _score(self) -> float | None:
        """The environment's reward, or None for a failed episode."""
        if self.failed or self._runner is None:
            return None
        value = self._waited(self._runner.submit(self._environment.get_reward), "get_reward")
        if self.failed:
            return None
        size: Any = abs(value) if isinstance(value, Real) else float("inf")
        if size <= MAX_REWARD:
            return float(value)
        is_finite = size < float("inf")
        rule = f"a number beyond ±{MAX_REWARD:g}" if is_finite else "no finite number"
        self._fail("nonsense", f"get_reward returned {shortened(value)}, {rule}")
        return None

    def _waited(self, future: Future, what: str) -> Any:
        try:
            return future.result(timeout=self._limits.step_seconds)
        except FutureTimeoutError:
            if future.done():  # the environment's own TimeoutError
                self._fail("error", f"{what} raised {one_line(future.exception() or TimeoutError())}")
            else:
                self._fail("timeout", f"{what} took longer than {self._limits.step_seconds:g} s")
        except Exception as error:
            self._fail("error", f"{what} raised {one_line(error)}")
        return None

    def _observation(self, result: Any, what: str) -> Any:
        if isinstance(result, str | int | float | dict | list) and len(str(result)) <= MAX_OBSERVATION:
            return result
        kind = "an observation" if not isinstance(result, str) else f"one of {MAX_OBSERVATION:,} characters at most"
        self._fail("nonsense", f"{what} returned {shortened(result)}, not {kind}")
        return OVER

    def _fail(self, outcome: Outcome, cause: str) -> None:
        self.outcome, self.cause = outcome, cause


class _Runner:
    """A thread that does one thing after the other, and that can be left behind when it hangs.

    A thread and no process: environments hold games, models and connections that cannot be sent to another. What hangs
    in a thread cannot be ended; it is a daemon, so that it does not keep the run from ending.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[[], Any]) -> Future:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="environment")
            self._thread.start()
        future: Future = Future()
        self._queue.put((function, future))
        return future

    def _run(self) -> None:
        while True:
            function, future = self._queue.get()
            try:
                result = function()
            except BaseException as error:  # to be raised where the result is asked for, SystemExit too
                future.set_exception(error if isinstance(error, Exception) else RuntimeError(one_line(error)))
            else:
                future.set_result(result)


def guarded(environment: Callable[[], Any], limits: EpisodeLimits | None = None) -> type[Episode]:
    """A class of episodes with the tools of an environment, to be given to TRL as `environment_factory`.

    Args:
        environment: the class, or a function without arguments that makes an instance; it is called once here.
        limits: of every episode; None: the defaults.

    Raises:
        InputError: it cannot be made, has no `reset`, no `get_reward` or no tool, a tool is asynchronous or without
            docstring, or an attribute has a name that the guard needs.
    """
    try:
        kind = environment if isinstance(environment, type) else type(environment())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also one that exits
        raise InputError(f"environment {_name(environment)} cannot be made ({one_line(error)})") from error
    methods = dict(inspect.getmembers(kind, predicate=inspect.isfunction))
    for needed in ("reset", "get_reward"):
        if needed not in methods:
            raise InputError(f"environment {kind.__name__} must have a method {needed}{nearest(needed, methods)}")
    tools = {n: m for n, m in methods.items() if not n.startswith("_") and n not in ("reset", "get_reward")}
    if not tools:
        raise InputError(f"environment {kind.__name__} has no tool: a public method beside reset and get_reward")
    for name, method in tools.items():
        if inspect.iscoroutinefunction(method):
            raise InputError(f"environment {kind.__name__}: tool {name} must not be asynchronous (async def)")
        if not method.__doc__:
            raise InputError(f"environment {kind.__name__}: tool {name} needs a docstring, which the model is shown")
        if hasattr(Episode, name) or name in ("outcome", "cause", "num_steps"):
            raise InputError(f"environment {kind.__name__}: a tool must not be called {name}")
    namespace: dict[str, Any] = {name: _tool(name, method) for name, method in tools.items()}
    namespace |= {
        "_factory": staticmethod(environment),
        "_tools": {name: inspect.signature(method) for name, method in tools.items()},
        "_limits": limits or EpisodeLimits(),
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (Episode,), namespace)


def _tool(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def tool(self: Episode, *values: Any, **arguments: Any) -> Any:
        if values:  # TRL calls tools with keywords only; people may not
            arguments = dict(zip(list(self._tools[name].parameters)[1:], values, strict=False)) | arguments
        return self._step(name, arguments)

    return tool


def _name(environment: Any) -> str:
    return getattr(environment, "__name__", type(environment).__name__)
