"""Running someone else's program in this process as the interpreter itself would.

The program is ``__main__``: a fresh module that stays in ``sys.modules`` after the program's end,
so that classes it defines can be pickled, processes that it spawns find it, and what runs at exit
(threads, ``atexit``) still sees it.  ``sys.argv`` and ``sys.path[0]`` are those of ``python
train.py`` or ``python -m package``.  An exception keeps the program's own traceback, its exit code
and its ``sys.excepthook``; Ctrl-C and ``SystemExit`` go their usual way.  Nothing heavy is imported
before the program imports it, since it may first set environment variables that are read then.
"""

import builtins
import io
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from types import ModuleType, TracebackType
from typing import NoReturn, Protocol

from lipprof.errors import ConfigError


class Launching(BaseException):
    """Carries what runs a program out of the parser, so that it runs outside of it."""

    def __init__(self, launch: "Launch") -> None:
        super().__init__(launch)
        self.launch = launch


class Launch(Protocol):
    """A command line that was understood."""

    def run(self) -> None:
        """Run the program to its end."""
        ...


def run_program(command: Sequence[str]) -> None:
    """Run a program to its end.

    Args:
        command: what would follow ``python``: ``train.py`` or ``-m package``, and its arguments.

    Raises:
        ConfigError: there is no such file.
        SystemExit: the program's own; any other of its exceptions likewise.
    """
    if command[0] == "-m":
        main, source = _prepare_module(command[1:]), None
    else:
        main, source = _prepare_script(command)
    sys.modules["__main__"] = main
    try:
        if source is None:
            # What the interpreter itself calls for -m; it runs in the present __main__.
            runpy._run_module_as_main(command[1])  # pyright: ignore[reportAttributeAccessIssue]
        else:
            exec(compile(source, main.__file__ or "", "exec", dont_inherit=True), vars(main))
    except SystemExit:
        raise
    except BaseException as error:
        _end_with(error)


def program_of(module: str | None, command: Sequence[str] | None) -> list[str]:
    """Put together what would follow ``python``, from an option ``-m`` and the arguments.

    Args:
        module: of ``-m``.
        command: the arguments.

    Returns:
        The command line.

    Raises:
        ConfigError: nothing to run, or no such file.
    """  # noqa: DOC502 - raised by check_command
    program = [*([] if module is None else ["-m", module]), *(command or [])]
    check_command(program)
    return program


def check_command(command: Sequence[str]) -> None:
    """Refuse a command line that cannot be run, before anything is loaded.

    Args:
        command: see ``run_program``.

    Raises:
        ConfigError: nothing to run, or no such file.
    """
    if not command or list(command) == ["-m"]:
        raise ConfigError(
            "Got no program to run. Give it after --, as python would get it: "
            "lipprof attach -- train.py --lr 0.1, or lipprof attach -- -m package."
        )
    if command[0] != "-m" and not os.path.isfile(command[0]):
        raise ConfigError(
            f"There is no file {command[0]!r} to run. lipprof's own options come before --, the "
            "program and its options after it."
        )


class AfterImport:
    """A finder on ``sys.meta_path`` that calls a function once a module has been imported.

    Args:
        name: of the module, at top level.
        callback: is called with the module complete, inside the import statement.
    """

    def __init__(self, name: str, callback: Callable[[], None]) -> None:
        self.name, self.callback = name, callback
        self.happened = False

    def install(self) -> None:
        """Wait for the import, or call at once where it has been."""
        if self.name in sys.modules:
            self._tell()
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Find the module as without this finder; its loader tells when it is done."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module
                execute(module)
                self._tell()

            loader.exec_module = exec_module
        return spec

    def _tell(self) -> None:
        self.happened = True
        self.callback()


def _prepare_module(arguments: Sequence[str]) -> ModuleType:
    _set_first_path(os.getcwd())
    sys.argv[:] = arguments  # the first is replaced by the module's path
    return ModuleType("__main__")


def _prepare_script(command: Sequence[str]) -> tuple[ModuleType, bytes]:
    check_command(command)
    path = os.path.abspath(command[0])
    with io.open_code(path) as file:
        source = file.read()
    main = ModuleType("__main__")
    vars(main).update(
        __file__=path,
        __builtins__=builtins,
        __cached__=None,
        __loader__=SourceFileLoader("__main__", path),
    )
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    sys.argv[:] = command
    return main, source


def _set_first_path(folder: str) -> None:
    """Replace the place that the interpreter gave to lipprof's own command."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _end_with(error: BaseException) -> NoReturn:
    """Show an exception as if the program had run by itself, and end the process as it would."""
    error.__traceback__ = _own_traceback(error.__traceback__)
    sys.excepthook(type(error), error, error.__traceback__)
    sys.excepthook = _shown_already
    raise error  # the interpreter derives the exit code, and a signal for Ctrl-C


def _own_traceback(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return traceback


def _shown_already(*_: object) -> None:
    """Stands in for ``sys.excepthook`` after it was called."""
