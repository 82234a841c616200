"""A command line whose mistakes are told in one line; both programs read theirs so."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn

USAGE = 2  # exit code


class Parser(argparse.ArgumentParser):
    """Takes flags in full only; names the nearest one where there is none of that name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does, which asks a command's own parser so, too."""
        if args is not None and self._subparsers is None:
            self._check_flags(args)
        return super().parse_known_args(args, namespace)

    def _check_flags(self, words: Sequence[str]) -> None:
        """An unknown flag ends it, before what is missing because of it does."""
        for word in takewhile(lambda word: word != "--", words):
            flag = word.partition("=")[0]
            if flag.startswith("--") and " " not in flag and flag not in self._option_string_actions:
                near = get_close_matches(flag, self._option_string_actions, 1)
                self.error(f"there is no {flag}" + (f" (did you mean {near[0]}?)" if near else ""))

    def error(self, message: str) -> NoReturn:
        """Without the usage, which may fill a screen."""
        self.exit(USAGE, f"{self.prog.partition(' ')[0]}: {message}; see `{self.prog} --help`\n")
