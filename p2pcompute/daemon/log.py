"""The node's log: one rotated file, text or JSON, with the level of the settings.

Standard library only: structlog would cost 200 ms and several MiB at each start for a log that is rarely read.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from p2pcompute.config import LogSettings
from p2pcompute.errors import StoreError
from p2pcompute.limits import LOG_BYTES_MAX, LOG_FILES_MAX

_LIBRARY_LEVELS: Final[Mapping[str, int]] = {
    "uvicorn": logging.WARNING,
    "asyncio": logging.WARNING,
    "zeroconf": logging.ERROR,
    "filelock": logging.WARNING,
}
"""Libraries are quieter than we are."""


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "part": _part(record.name),
            "text": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{self.formatTime(record)} {record.levelname.lower():7} {_part(record.name)}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _part(logger: str) -> str:
    return logger.removeprefix("p2pcompute.")


def start_log(path: Path, settings: LogSettings, *, to_terminal: bool) -> None:
    """Send everything that is logged in this process to `path`, and to stderr too when a person watches.

    Raises:
        StoreError: the file cannot be written.
    """
    formatter = _JsonFormatter() if settings.format == "json" else _TextFormatter()
    try:
        file: logging.Handler = RotatingFileHandler(
            path, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_MAX - 1, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        raise StoreError(f"the log {path} cannot be written", error.strerror or str(error)) from error
    outputs = [file]
    if to_terminal:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(logging.WARNING if settings.level == "info" else settings.level.upper())
        outputs.append(terminal)
    root = logging.getLogger()
    root.setLevel(settings.level.upper())
    for output in outputs:
        output.setFormatter(formatter)
        root.addHandler(output)
    for name, level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(max(level, root.level))
    logging.captureWarnings(True)


def stop_log() -> None:
    """Flush and close what `start_log` opened."""
    root = logging.getLogger()
    for output in list(root.handlers):
        root.removeHandler(output)
        output.close()
    logging.captureWarnings(False)
