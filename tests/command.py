"""The command as a person meets it: exit codes, messages, and silence where due."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

import stillgrain as program

ROOT = Path(__file__).resolve().parents[1]


def stillgrain(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it in this process, which has long imported all that a new one takes seconds for."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["stillgrain", *map(str, words)])
        patch.chdir(ROOT)
        with pytest.raises(SystemExit) as ended:
            program.main()
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess(words, ended.value.code, out.getvalue(), err.getvalue())


def stillgrain_alone(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own."""
    command = [sys.executable, "-m", "stillgrain", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """One message that holds these parts, exit code 2 and nothing else."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr
