"""A kernel in a jail: what code prints, returns, shows and writes; its errors, its end, and fifty ordinary pieces of analysis."""

# ruff: noqa: E501 - the code of a snippet is one string

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from jail_fixtures import SMALL, any_jail_spec, jail_spec  # pyright: ignore[reportMissingImports]
from snippets import SNIPPETS  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError, NotFoundError
from herd.tools.code.choose import JailReport, check, choose, survey
from herd.tools.code.kernel import Kernel
from herd.tools.code.outcome import CodeError, Outcome
from herd.tools.errors import JailError
from herd.tools.jail import cgroup
from herd.tools.jail.interpreter import Interpreter, chosen, describe
from herd.tools.jail.limits import JailLimits
from herd.tools.jail.process import KINDS, Kind
from herd.tools.tool import Attachment

FULL = bool(os.environ.get("HERD_TEST_FULL"))


@pytest.fixture(name="kernel", scope="module", params=KINDS)
def kernel_fixture(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """A kernel with its names, shared by the tests of the module that leave it alive."""
    kernel = Kernel(jail_spec(request.param, replace(SMALL, run_s=30.0)))
    kernel.wait_ready()
    yield kernel
    kernel.close()


@pytest.fixture(name="analyst", scope="module", params=KINDS if FULL else ["any"])
def analyst_fixture(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """A kernel for ordinary work: in the first jail that works, or with HERD_TEST_FULL=1 in each."""
    limits = replace(SMALL, run_s=30.0)
    kernel = Kernel(any_jail_spec(limits) if request.param == "any" else jail_spec(request.param, limits))
    yield kernel
    kernel.close()


@pytest.mark.parametrize(("code", "gives"), SNIPPETS, ids=[str(number) for number in range(len(SNIPPETS))])
def test_ordinary_analysis_runs(analyst: Kernel, code: str, gives: str) -> None:
    outcome = analyst.run(code)
    missing = re.search(r"No module named '(numpy|pandas|matplotlib)'", outcome.stderr + (outcome.error.traceback if outcome.error else ""))
    if missing:
        pytest.skip(f"the interpreter has no {missing[1]}")
    assert outcome.status == "completed", outcome.text()
    if "hashlib" not in code:
        assert (outcome.result or "") == gives
    if "plt.show" in code or "subplots" in code:
        assert [file.data[:8] for file in outcome.attachments if file.mime_type == "image/png"], outcome.text()


def test_there_are_fifty() -> None:
    assert len(SNIPPETS) == 50


def test_names_are_kept_from_one_piece_to_the_next(kernel: Kernel) -> None:
    assert kernel.run("answer = 41").result is None
    assert kernel.run("answer + 1").result == "42"
    assert kernel.run("_ + 1").result == "43"


def test_what_is_printed_by_python_by_c_and_by_other_programs_comes_back(kernel: Kernel) -> None:
    outcome = kernel.run(
        "import os, sys, subprocess\nprint('python')\nos.write(1, b'c\\n')\nsubprocess.run(['echo', 'other'])\nprint('err', file=sys.stderr)\nNone"
    )
    assert outcome.stdout.split() == ["python", "c", "other"]
    assert outcome.stderr == "err\n"


def test_an_error_comes_with_the_codes_own_lines_only(kernel: Kernel) -> None:
    outcome = kernel.run("def f(x):\n    return 1 / x\nf(0)")
    assert outcome.status == "failed"
    assert outcome.error is not None and outcome.error.name == "ZeroDivisionError"
    assert "return 1 / x" in outcome.error.traceback and "<kernel>" not in outcome.error.traceback
    assert outcome.text().startswith("failed\n[stderr]\nTraceback")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("1 +", "SyntaxError"),
        ("raise ValueError('é\\ud800')", "ValueError"),
        ("class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E", "E"),
        ("def f(): f()\nf()", "RecursionError"),
        ("input()", "EOFError"),
        ("import sys; sys.exit('bye')", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class R:\n    def __repr__(self): raise OSError('no')\nR()", "OSError"),
        ("x = '\\x00'\nexec(x)", "SyntaxError"),
    ],
)
def test_every_kind_of_error_is_told_and_the_kernel_lives(kernel: Kernel, code: str, name: str) -> None:
    outcome = kernel.run(code)
    assert outcome.status == "failed"
    assert outcome.error is not None and outcome.error.name in (name, "ValueError")
    assert kernel.run("1").result == "1"


def test_closed_streams_do_not_stay_closed(kernel: Kernel) -> None:
    kernel.run("import sys; sys.stdout.close(); sys.stderr = None")
    assert kernel.run("print('again')").stdout == "again\n"


def test_code_that_forks_and_falls_out_leaves_one_kernel(kernel: Kernel) -> None:
    outcome = kernel.run("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint('once' if pid else 'child')")
    assert outcome.status == "completed"
    assert kernel.run("2 + 2").result == "4"


def test_files_in_and_out(kernel: Kernel) -> None:
    kernel.put(Attachment(name="in/data.csv", mime_type="text/csv", data=b"a\n1\n"))
    outcome = kernel.run(
        "text = open('in/data.csv').read()\nimport os\nos.makedirs('out', exist_ok=True)\nopen('out/r.txt', 'w').write(text * 2)\nNone"
    )
    assert [(file.name, file.mime_type, file.data) for file in outcome.attachments] == [("out/r.txt", "text/plain", b"a\n1\na\n1\n")]
    assert "out/r.txt" in outcome.text()
    assert kernel.run("1").attachments == ()


def test_a_page_of_the_code_is_never_given_out_as_one_that_a_browser_runs(kernel: Kernel) -> None:
    outcome = kernel.run("for n in ('a.html', 'a.svg', 'a.js'): open(n, 'w').write('<script>alert(1)</script>')")
    assert {file.mime_type for file in outcome.attachments} == {"application/octet-stream"}


def test_each_figure_is_a_picture(kernel: Kernel) -> None:
    outcome = kernel.run("import matplotlib.pyplot as plt\nfor n in range(2):\n    plt.figure(); plt.plot([n, 1])\nplt.show()")
    if outcome.error is not None and outcome.error.name == "ModuleNotFoundError":
        pytest.skip("the interpreter has no matplotlib")
    assert len(outcome.attachments) == 2
    assert len({file.name for file in outcome.attachments}) == 2
    assert all(file.data.startswith(b"\x89PNG") and file.mime_type == "image/png" for file in outcome.attachments)


def test_what_does_not_stop_is_stopped_and_keeps_its_names(kernel: Kernel) -> None:
    kernel.run("kept = 'yes'")
    outcome = kernel.run("import subprocess\nsubprocess.Popen(['sleep', '100'])\nwhile True: pass", run_s=0.3)
    assert (outcome.status, outcome.ended) == ("timeout", None)
    assert "variables are kept" in outcome.text()
    assert kernel.run("kept").result == "'yes'"


def test_more_output_than_is_kept_is_counted(kernel: Kernel) -> None:
    outcome = kernel.run("print('x' * 200_000)")
    assert len(outcome.stdout) == 50_000
    assert outcome.stdout_lost_bytes == 150_001
    assert outcome.truncated and "150001 bytes more left out" in outcome.text()


def test_the_environment_is_clean(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_TEST_SECRET", "s3cret")
    fresh = Kernel(kernel.spec)
    try:
        names = fresh.run("import os\nsorted(os.environ)").result or ""
    finally:
        fresh.close()
    assert "HERD_TEST_SECRET" not in names and "PYTHONPATH" not in names and "HOME" in names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("code", "status", "ended"),
    [
        ("import os; os._exit(3)", "failed", "ended"),
        ("import ctypes; ctypes.string_at(0)", "failed", "ended"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "failed", "ended"),
        ("import signal; signal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass", "timeout", "timeout"),
    ],
)
def test_a_kernel_that_dies_is_told_and_stays_dead(kind: Kind, code: str, status: str, ended: str) -> None:
    kernel = Kernel(jail_spec(kind, replace(SMALL, run_s=0.5)))
    outcome = kernel.run(code)
    assert (outcome.status, outcome.ended) == (status, ended)
    assert "variables are gone" in outcome.text()
    assert not kernel.alive()
    assert kernel.run("1").ended is not None
    with pytest.raises(JailError):
        kernel.put(Attachment(name="a", mime_type="text/plain", data=b""))
    kernel.close()
    kernel.close()


@pytest.mark.parametrize("kind", KINDS)
def test_kill_from_another_thread_ends_a_run(kind: Kind) -> None:
    kernel = Kernel(jail_spec(kind, replace(SMALL, run_s=60.0)))
    kernel.wait_ready()
    threading.Timer(0.3, kernel.kill).start()
    outcome = kernel.run("import time; time.sleep(60)")
    assert (outcome.status, outcome.ended) == ("failed", "cancelled")
    assert outcome.elapsed_s < 20
    kernel.close()


def test_a_jail_leaves_nothing_behind() -> None:
    def traces() -> tuple[int, list[str], list[str]]:
        folders = [str(path) for place in cgroup.places() for path in place.glob(f"herd-jail-{os.getpid()}-*")]
        import tempfile

        return len(os.listdir("/proc/self/fd")), folders, [str(path) for path in Path(tempfile.gettempdir()).glob("herd-jail-*")]

    def left_by_one(kind: Kind) -> bool:
        before = traces()
        kernel = Kernel(jail_spec(kind))
        kernel.run("open('f', 'w').write('x')")
        pid = kernel.pid
        kernel.close()
        assert not Path(f"/proc/{pid}").exists()
        return traces() != before

    for kind in KINDS:
        kernel = Kernel(jail_spec(kind))
        kernel.wait_ready()
        kernel.close()
        # What a jail leaves, every one leaves; a file that another test's thread opens meanwhile comes once.
        assert not all(left_by_one(kind) for _ in range(3))


def test_terminal_escapes_do_not_reach_the_reader() -> None:
    outcome = Outcome(status="completed", stdout="\x1b]0;title\x07\x1b[31mred\x1b[0m\x00\x08 plain\n", result="\x9b31m")
    assert outcome.text() == "completed\n[stdout]\nred plain\n31m\n[/stdout]"


def test_the_text_is_the_form_that_llama_was_taught() -> None:
    error = CodeError(name="E", message="m", traceback="Traceback\nE: m\n")
    assert Outcome(status="completed", stdout="a\n").text() == "completed\n[stdout]\na\n[/stdout]"
    assert Outcome(status="failed", error=error).text() == "failed\n[stderr]\nTraceback\nE: m\n[/stderr]"
    assert Outcome(status="completed").text() == "completed"
    assert Outcome(status="timeout", ended="timeout").text().splitlines()[0] == "timeout"


def test_the_survey_tries_every_kind() -> None:
    reports = survey(chosen())
    assert [report.kind for report in reports] == list(KINDS)
    assert all(report.reason for report in reports)


def test_without_bubblewrap_the_survey_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.tools.code.choose.shutil.which", lambda *_, **__: None)
    report = check("bubblewrap", chosen())
    assert not report.works and "not installed" in report.reason and "apt-get install bubblewrap" in report.hint


def test_without_landlock_the_survey_says_which_kernel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.tools.code.choose.landlock.abi", lambda: 0)
    report = check("landlock", chosen())
    assert not report.works and "has no Landlock" in report.reason and "Linux 6." in report.hint
    monkeypatch.setattr("herd.tools.code.choose.landlock.abi", lambda: 3)
    assert "version 3" in check("landlock", chosen()).reason


def test_where_no_jail_works_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.tools.code.choose._checked", lambda kind, _: replace(check_failed, kind=kind))
    with pytest.raises(JailError, match="code is not run, since no jail works") as refused:
        choose()
    assert refused.value.hint == "install it"


check_failed = JailReport(kind="bubblewrap", works=False, reason="broken", hint="install it")


def test_an_interpreter_that_leaks_is_no_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = any_jail_spec()
    monkeypatch.setattr("herd.tools.code.choose._TRY_TO_GET_OUT", "'{\"opens a network socket\": true}'")
    report = check(spec.kind, spec.interpreter)
    assert not report.works and "opens a network socket" in report.reason


def test_switched_off_and_misspelt(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JailError, match="switched off"):
        choose(jail="off")
    with pytest.raises(ConfigError, match="'docker'"):
        choose(jail="docker")
    monkeypatch.setenv("HERD_CODE_JAIL", "off")
    with pytest.raises(JailError):
        choose()


def test_an_interpreter_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is no Python that runs"):
        describe(str(tmp_path / "python"))


def test_a_jail_that_cannot_start_says_why() -> None:
    spec = any_jail_spec()
    kernel = Kernel(replace(spec, interpreter=Interpreter(path="/nonexistent/python", folders=())))
    with pytest.raises(JailError, match=r"did not start: .*nonexistent"):
        kernel.wait_ready()


@pytest.mark.parametrize("name", ["memory_bytes", "run_s", "processes", "output_bytes"])
def test_limits_are_above_zero(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        JailLimits(**{name: 0.0 if name == "run_s" else 0})  # type: ignore[arg-type]


def test_warm_start_is_short() -> None:
    """Measured in the guide; here only that a kernel that is ready answers much sooner than one that is not."""
    kernel = Kernel(any_jail_spec())
    started = time.monotonic()
    kernel.wait_ready()
    cold = time.monotonic() - started
    warm = min(kernel.run("1").elapsed_s for _ in range(5))
    kernel.close()
    assert warm < cold
