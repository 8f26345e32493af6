"""The kernel: what runs inside a jail and runs code there, one piece after another in the same names.

One file of the standard library, for Python 3.9 and newer: it is sent into the jail as text. It reads commands as JSON lines and writes
replies as JSON lines. Once foreign code ran, nothing that it says can be trusted: whoever reads its replies checks them.
"""

# ruff: noqa: D102, SIM105, UP031 - one file that also Python 3.9 runs

import ast
import base64
import builtins
import gc
import importlib.abc
import importlib.util
import io
import json
import linecache
import os
import resource
import signal
import stat
import sys
import time
import traceback
import types

MAX_RESULT_CHARS = 100_000
MAX_FILES_BACK = 64
MAX_FILES_SEEN = 5_000
MAX_DEPTH = 6

FIGURES = """
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas
from matplotlib.backend_bases import FigureManagerBase as FigureManager

def show(*args, **kwargs):
    import __herd__
    __herd__.show_figures()
"""


class CellTimeout(BaseException):
    """The time for one piece of code is up."""


class Replies:
    """The pipe to the outside. A child that code forked has no business on it."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.owner = os.getpid()

    def send(self, **message):
        if os.getpid() != self.owner:
            return
        data = memoryview(json.dumps(message).encode("ascii") + b"\n")
        while data:
            data = data[os.write(self.descriptor, data) :]


class FiguresFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """matplotlib asks for its backend by module name; this one draws to memory and shows by sending a picture."""

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "herd_figures" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(FIGURES, "herd_figures", "exec"), module.__dict__)


class Kernel:
    """The names that code works on, and how a piece of it is run."""

    def __init__(self, commands, replies):
        self.commands = commands
        self.replies = Replies(replies)
        self.work = os.getcwd()
        self.count = 0
        self.room = 0
        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = builtins
        self.begin()

    def begin(self):
        sys.modules["__main__"] = self.module
        sys.meta_path.insert(0, FiguresFinder())
        here = types.ModuleType("__herd__")
        here.__dict__["show_figures"] = self.show_figures
        sys.modules["__herd__"] = here
        sys.argv = [""]
        sys.path.insert(0, self.work)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
        sys.stdin = io.StringIO("")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, self.out_of_time)
        os.makedirs(os.environ.get("TMPDIR", "/tmp"), exist_ok=True)

    @staticmethod
    def out_of_time(*_):
        raise CellTimeout

    def serve(self):
        self.replies.send(type="ready", python="%d.%d.%d" % sys.version_info[:3])
        for line in self.commands:
            message = json.loads(line)
            if message["op"] == "put":
                self.put(message)
            else:
                self.run(message)
            if os.getpid() != self.replies.owner:
                # Code forked and the child came out of the block that it was in.
                os._exit(0)

    def put(self, message):
        path = os.path.join(self.work, message["name"])
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(base64.b64decode(message["data"]))
            self.replies.send(type="done")
        except OSError as error:
            self.replies.send(type="error", name="OSError", message=str(error), traceback="")
            self.replies.send(type="done")

    def run(self, message):
        self.count += 1
        self.room = message["attachment_bytes"]
        before = self.files() if message["files"] else {}
        status = "completed"
        try:
            signal.setitimer(signal.ITIMER_REAL, message["run_s"])
            try:
                self.execute(message["code"])
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except CellTimeout:
            status = "timeout"
            self.end_others()
        except SystemExit as leave:
            if leave.code not in (None, 0):
                status = "failed"
                self.replies.send(type="error", name="SystemExit", message=str(leave.code), traceback="SystemExit: %s\n" % leave.code)
        except BaseException as error:
            status = "failed"
            self.tell(error)
        self.replies.send(type="ran")
        self.finish(before, message["files"])
        self.replies.send(type="done", status=status)

    @staticmethod
    def end_others():
        """Code that ran too long may have left processes that go on. The jail ends at its own walls, so this reaches nobody else."""
        for _ in range(20):
            try:
                os.kill(-1, signal.SIGKILL)
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except OSError:
                return
            time.sleep(0.01)

    def finish(self, before, wanted):
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (ValueError, OSError, AttributeError):
                pass
        try:
            signal.setitimer(signal.ITIMER_REAL, 10)
            self.show_figures()
            if wanted:
                self.send_files(before)
        except BaseException as error:
            self.tell(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for name in ("stdout", "stderr"):
            # Code that closed or replaced them does not take them from the next piece.
            if getattr(getattr(sys, name), "closed", True):
                stream = io.TextIOWrapper(
                    os.fdopen(1 if name == "stdout" else 2, "wb", closefd=False), "utf-8", "backslashreplace", line_buffering=True
                )
                setattr(sys, name, stream)

    def execute(self, code):
        name = "<cell %d>" % self.count
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        names = self.module.__dict__
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self.evaluate(compile(tree, name, "exec", flags=flags), names)
        if last is None:
            return
        value = self.evaluate(compile(ast.Expression(last.value), name, "eval", flags=flags), names)
        if value is not None:
            names["_"] = value
            text = repr(value)
            self.replies.send(type="result", text=text[:MAX_RESULT_CHARS], cut=len(text) > MAX_RESULT_CHARS)

    @staticmethod
    def evaluate(compiled, names):
        value = eval(compiled, names)
        if compiled.co_flags & 0x180 and hasattr(value, "send"):
            import asyncio

            return asyncio.run(Kernel.awaited(value))
        return value

    @staticmethod
    async def awaited(value):
        return await value

    def tell(self, error):
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == "<kernel>":
            frames = frames.tb_next
        try:
            text = "".join(traceback.format_exception(type(error), error, frames, limit=-30))
        except BaseException:
            text = type(error).__name__ + "\n"
        try:
            words = str(error)
        except BaseException:
            words = ""
        error.__traceback__ = None
        gc.collect()
        self.replies.send(type="error", name=type(error).__name__, message=words[:2000], traceback=text[-MAX_RESULT_CHARS:])

    def show_figures(self):
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        for number in pyplot.get_fignums():
            buffer = io.BytesIO()
            pyplot.figure(number).savefig(buffer, format="png", bbox_inches="tight")
            self.attach("display", "figure.png", buffer.getvalue())
        pyplot.close("all")

    def attach(self, kind, name, data):
        if len(data) > self.room:
            self.replies.send(type="left_out", name=name, reason="over the limit for pictures and files")
            return
        self.room -= len(data)
        self.replies.send(type=kind, name=name, data=base64.b64encode(data).decode("ascii"))

    def files(self):
        """Regular files below the working folder by relative name; links are not followed, hidden ones not seen."""
        found = {}
        for current, folders, names in os.walk(self.work):
            depth = current[len(self.work) :].count("/")
            folders[:] = [name for name in sorted(folders) if not name.startswith((".", "__pycache__")) and depth < MAX_DEPTH]
            for name in sorted(names):
                if name.startswith(".") or len(found) >= MAX_FILES_SEEN:
                    continue
                path = os.path.join(current, name)
                try:
                    status = os.lstat(path)
                except OSError:
                    continue
                found[os.path.relpath(path, self.work)] = (stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns, status.st_ino)
        return found

    def send_files(self, before):
        changed = [(name, facts) for name, facts in self.files().items() if before.get(name) != facts]
        for name, facts in changed[:MAX_FILES_BACK]:
            if facts[0] != stat.S_IFREG:
                self.replies.send(type="left_out", name=name, reason="not a plain file")
                continue
            try:
                descriptor = os.open(os.path.join(self.work, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                with os.fdopen(descriptor, "rb") as file:
                    data = file.read(self.room + 1)
            except OSError as error:
                self.replies.send(type="left_out", name=name, reason=str(error.strerror))
                continue
            self.attach("file", name, data)
        if len(changed) > MAX_FILES_BACK:
            self.replies.send(type="left_out", name="%d more" % (len(changed) - MAX_FILES_BACK), reason="too many files")


def begin(commands, replies):
    """Set the limits, which nothing in here can raise again; load what was asked for; serve."""
    header = json.loads(commands.readline())
    for name, value in header["rlimits"].items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))
    os.set_inheritable(commands.fileno(), False)
    os.set_inheritable(replies, False)
    kernel = Kernel(commands, replies)
    for name in header["preload"]:
        try:
            __import__(name)
        except ImportError:
            pass
    kernel.serve()


if "commands" in globals():
    begin(globals()["commands"], globals()["replies"])
