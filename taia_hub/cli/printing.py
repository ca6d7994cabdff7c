"""What commands print: texts of models, repositories and files, none of which may act in a terminal."""

from __future__ import annotations

import logging

import typer

from taia_hub.errors import safe_text


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Prints a text, without what would act in a terminal."""
    typer.echo(safe_text(str(text)), err=err, nl=nl)


class _SafeRecords(logging.Filter):
    """Takes out of log records what would act in a terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Makes the record's message a text that is safe."""
        record.msg, record.args = safe_text(record.getMessage()), ()
        return True


SAFE_RECORDS = _SafeRecords()
